"""What is not to be expected of Tornado's tests: those that cannot pass, and those that prove nothing about us.

Each test has its reason. The runner keeps both lists true: a test that passes although it is said that it cannot, or
that makes a stream, client or server of ours although it is said to be vacuous, has failed.
"""

TLS = "TLS is not in this release: SSLIOStream, start_tls() and ssl_options are to come."


# These are of a mixin; the suites run them on SSLIOStream twice.
ON_TLS_STREAMS = [
    "test_async_read_error_logging",
    "test_close_buffered_data",
    "test_close_callback_with_pending_read",
    "test_flow_control",
    "test_future_close_callback",
    "test_future_delayed_close_callback",
    "test_future_write",
    "test_inline_read_error",
    "test_large_read_until",
    "test_many_mixed_reads",
    "test_read_bytes_partial",
    "test_read_into",
    "test_read_into_buffer_resizable",
    "test_read_into_partial",
    "test_read_into_resizable_after_close",
    "test_read_into_zero_bytes",
    "test_read_until_close_after_close",
    "test_read_until_close_after_connection_reset",
    "test_read_until_close_after_error_close",
    "test_read_until_close_with_buffer_overflow",
    "test_read_until_close_with_error",
    "test_read_until_max_bytes",
    "test_read_until_max_bytes_ignores_extra",
    "test_read_until_max_bytes_inline",
    "test_read_until_regex_max_bytes",
    "test_read_until_regex_max_bytes_ignores_extra",
    "test_read_until_regex_max_bytes_inline",
    "test_read_until_unsatisfied_after_close",
    "test_read_until_with_close_after_second_packet",
    "test_small_read_untils_from_large_buffer",
    "test_small_reads_from_large_buffer",
    "test_write_bytearray_resizable",
    "test_write_bytearray_resizable_after_close",
    "test_write_bytearray_resizable_after_close_while_writing",
    "test_write_bytearray_resizable_after_error",
    "test_write_memoryview",
    "test_write_zero_bytes",
]

OTHER_TLS = [
    "TestIOStreamCheckHostname.test_check_disabled",
    "TestIOStreamCheckHostname.test_match",
    "TestIOStreamCheckHostname.test_no_match",
    "TestIOStreamStartTLS.test_check_hostname",
    "TestIOStreamStartTLS.test_handshake_fail",
    "TestIOStreamStartTLS.test_start_tls_cancellation",
    "TestIOStreamStartTLS.test_start_tls_smtp",
    "TestIOStreamWebHTTPS.test_connection_closed",
    "TestIOStreamWebHTTPS.test_future_close_while_reading",
    "TestIOStreamWebHTTPS.test_future_interface",
    "TestIOStreamWebHTTPS.test_future_read_until_close",
    "TestIOStreamWebHTTPS.test_read_until_close",
    "TestIOStreamWebHTTPS.test_read_zero_bytes",
    "TestIOStreamWebHTTPS.test_write_while_connecting",
    "WaitForHandshakeTest.test_wait_for_handshake_already_connected",
    "WaitForHandshakeTest.test_wait_for_handshake_already_waiting_error",
    "WaitForHandshakeTest.test_wait_for_handshake_future",
]

ON_TLS_CLIENTS = [
    "test_connect_tls_cancel_closes_stream",
    "test_connect_tls_cancel_with_timeout_closes_stream",
    "test_connect_tls_timeout_closes_stream",
]

CANNOT_PASS = {
    **{f"iostream_test.TestIOStreamSSL.{name}": TLS for name in ON_TLS_STREAMS},
    **{f"iostream_test.TestIOStreamSSLContext.{name}": TLS for name in ON_TLS_STREAMS},
    **{f"iostream_test.{name}": TLS for name in OTHER_TLS},
    **{f"tcpclient_test.TCPClientTest.{name}": TLS for name in ON_TLS_CLIENTS},
    "iostream_test.TestIOStream.test_read_until_close_with_error": (
        "It replaces a private method of Tornado's streams, _try_inline_read, which ours don't have."
    ),
}

PRIVATE_BUFFER = "It tests a private class of Tornado's, _StreamBuffer, which nothing of ours uses."

ON_BUFFERS = [
    "test_clear",
    "test_interleaved_random",
    "test_large",
    "test_release_large_views",
    "test_small",
]

PRIVATE_CONNECTOR = "It tests a private class of Tornado's, _Connector, which nothing of ours uses."

ON_CONNECTORS = [
    "ConnectorTest.test_all_attempts_cancelled",
    "ConnectorTest.test_all_fail",
    "ConnectorTest.test_attempt_cancelled",
    "ConnectorTest.test_cancel",
    "ConnectorTest.test_immediate_failure",
    "ConnectorTest.test_immediate_success",
    "ConnectorTest.test_one_family_second_try",
    "ConnectorTest.test_one_family_second_try_after_connect_timeout",
    "ConnectorTest.test_one_family_second_try_failure",
    "ConnectorTest.test_one_family_second_try_failure_before_connect_timeout",
    "ConnectorTest.test_one_family_second_try_timeout",
    "ConnectorTest.test_one_family_success_before_connect_timeout",
    "ConnectorTest.test_one_family_timeout_after_connect_timeout",
    "ConnectorTest.test_success_after_timeout",
    "ConnectorTest.test_sync_failure_all",
    "ConnectorTest.test_sync_failure_first_address",
    "ConnectorTest.test_sync_failure_in_callback",
    "ConnectorTest.test_sync_failure_whole_family",
    "ConnectorTest.test_two_families_immediate_failure",
    "ConnectorTest.test_two_families_timeout",
    "ConnectorTest.test_two_family_success_after_timeout",
    "ConnectorTest.test_two_family_timeout_after_connect_timeout",
    "ConnectorTest.test_two_family_timeout_before_connect_timeout",
    "TestConnectorSplit.test_mixed",
    "TestConnectorSplit.test_one_family",
]

PRIVATE_FORMAT = "It tests a private function of Tornado's, _format_addr, which nothing of ours uses."

VACUOUS = {
    **{f"iostream_test.TestStreamBuffer.{name}": PRIVATE_BUFFER for name in ON_BUFFERS},
    **{f"tcpclient_test.{name}": PRIVATE_CONNECTOR for name in ON_CONNECTORS},
    **{f"tcpclient_test.TestFormatAddr.{name}": PRIVATE_FORMAT for name in ("test_ipv4", "test_ipv6", "test_other")},
}
