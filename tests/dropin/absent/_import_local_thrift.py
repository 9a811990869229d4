"""Of thrift's tests: finds the thrift of a source tree. Here an installed one is tested."""
