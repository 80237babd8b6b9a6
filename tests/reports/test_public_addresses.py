"""Addresses that pass for public and lead into this network.

``fec0::1``, ``3fff::1``, ``192.88.99.1`` and ``192.0.0.8`` passed, and were fetched from.
"""

from __future__ import annotations

import pytest

from modalign.serving.http.fetch import is_public
from reports.threads import reported


@reported("vllm-project/vllm#57157", "flytohub/flyto-core#20")
@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "fec0::1", "3fff::1", "192.88.99.1", "192.0.0.8", "192.0.0.9", "192.0.0.170", "192.31.196.1",
        "192.52.193.1", "192.175.48.1", "198.51.100.1", "203.0.113.1", "::ffff:192.88.99.1", "::1.2.3.4",
        "::ffff:0:8.8.8.8", "64:ff9b:1::1", "100::1", "100:0:0:1::1", "2001:1::1", "2001:2::1", "2001:20::1",
        "2620:4f:8000::1", "3fff:fff::1", "4000::1", "5f00::1", "0.1.2.3", "2001:db8::8.8.8.8",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@reported("vllm-project/vllm#57157", "flytohub/flyto-core#20")
@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "93.184.216.34",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "192.0.1.1",
        "2001:4860::8888",
    ],
)
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)
