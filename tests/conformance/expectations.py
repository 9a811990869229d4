"""What is not to be expected of Tornado's tests: those that cannot pass, and those that prove nothing about us.

Each test has its reason. The runner keeps both lists true: a test that passes although it is said that it cannot, or
that makes a stream, client or server of ours although it is said to be vacuous, has failed.
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
