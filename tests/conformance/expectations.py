"""What is not to be expected of Tornado's tests: those that cannot pass, and those that prove nothing about us.

Each test has its reason. The runner keeps both lists true: a test that passes although it is said that it cannot, or
that makes a stream, client or server of ours although it is said to be vacuous, has failed. Where all tests of a class
are vacuous, the class is listed.
"""

CANNOT_PASS = {
    **{
        f"iostream_test.{name}.test_read_until_close_with_error": (
            "It replaces a private method of Tornado's streams, _try_inline_read, which ours don't have."
        )
        for name in ("TestIOStream", "TestIOStreamSSL", "TestIOStreamSSLContext")
    },
    "iostream_test.WaitForHandshakeTest.test_wait_for_handshake_future": (
        "It wants handle_stream called before the handshake; ours is called after it, under handshake_timeout."
    ),
    "iostream_test.WaitForHandshakeTest.test_wait_for_handshake_already_waiting_error": (
        "It wants a second wait_for_handshake() refused; with ours it is over, and may be asked for again."
    ),
}

VACUOUS = {
    "iostream_test.TestStreamBuffer": (
        "It tests a private class of Tornado's, _StreamBuffer, which nothing of ours uses."
    ),
    **{
        f"tcpclient_test.{name}": "It tests a private class of Tornado's, _Connector, which nothing of ours uses."
        for name in ("ConnectorTest", "TestConnectorSplit")
    },
    "tcpclient_test.TestFormatAddr": (
        "It tests a private function of Tornado's, _format_addr, which nothing of ours uses."
    ),
    **{
        f"websocket_test.{name}": "It tests how a frame is masked, without a connection."
        for name in ("CythonMaskFunctionTest", "PythonMaskFunctionTest")
    },
    "websocket_test.PingCalculationTest": "It calculates when to send a ping, without a connection.",
    **{
        f"web_test.{name}": "It signs and verifies values, without a connection."
        for name in ("SecureCookieV1Test", "SecureCookieV2Test", "SignedValueTest")
    },
    "web_test.StaticFileVersionPathTest": "It hashes files, without a connection.",
    "web_test.HTTPErrorTest": "It copies an exception, without a connection.",
    "web_test.URLSpecReverseTest": "It makes URLs from routes, without a connection.",
}
"""Tests, or whole classes of them, that never touch our classes."""

UNHURRIED = {
    "http1connection_test.HTTP1ConnectionTest.test_chunked_body_tiny_chunks": (
        "It wants 5,000 chunks that have all arrived delivered in less than ten pieces, and each turn of the loop that "
        "the hub's clock ends begins a new one."
    ),
}
"""Tests that must not depend on how much a machine does in a turn of the hub (3 ms): for them a turn takes seconds."""
