//! Which addresses are special-use: the IANA registries, and IPv6 addresses that stand for an IPv4 address.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};

/// What an address is for, where that is not to be reached over the public internet. `Display` names it, with its
/// article: "a private address".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialUse(&'static str);

impl SpecialUse {
    const LINK_LOCAL: Self = Self("a link-local address");

    /// Where clouds keep their metadata services, with credentials of the machine.
    pub fn is_link_local(self) -> bool {
        self == Self::LINK_LOCAL
    }
}

impl fmt::Display for SpecialUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What an address is for; nothing where it is a public one.
///
/// An IPv6 address that stands for an IPv4 address is what that is, and link-local in whatever wrapping: there the
/// packets may end.
pub fn special_use(address: IpAddr) -> Option<SpecialUse> {
    match address {
        IpAddr::V4(address) => of_v4(address),
        IpAddr::V6(address) => of_v6(address),
    }
}

fn of_v4(address: Ipv4Addr) -> Option<SpecialUse> {
    V4.iter().find(|(block, _)| block.contains(&address)).map(|(_, special_use)| *special_use)
}

fn of_v6(address: Ipv6Addr) -> Option<SpecialUse> {
    let mut inner = embedded(address).into_iter().filter_map(of_v4);
    let first = inner.clone().next();
    if inner.any(SpecialUse::is_link_local) {
        return Some(SpecialUse::LINK_LOCAL);
    }
    if TRANSPARENT.iter().any(|block| block.contains(&address)) {
        return first;
    }
    let listed = V6.iter().find(|(block, _)| block.contains(&address)).map(|(_, special_use)| *special_use);
    listed.or(first)
}

/// The IPv4 addresses that an IPv6 address stands for. Several, where it does not say by which rule it is to be read.
fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let bytes = address.octets();
    let at = |places: [usize; 4]| Ipv4Addr::from(places.map(|place| bytes.get(place).copied().unwrap_or_default()));
    const LAST: [usize; 4] = [12, 13, 14, 15];
    if TRANSPARENT.iter().chain(&WITH_V4_LAST).any(|block| block.contains(&address)) {
        vec![at(LAST)]
    } else if NAT64_LOCAL.contains(&address) {
        // RFC 6052, section 2.2: the places for prefixes of 48, 56, 64 and 96 bits, which skip byte 8.
        vec![at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12]), at(LAST)]
    } else if SIX_TO_FOUR.contains(&address) {
        vec![at([2, 3, 4, 5])]
    } else if TEREDO.contains(&address) {
        // RFC 4380, section 4: the server, and the client with its bits inverted.
        vec![at([4, 5, 6, 7]), Ipv4Addr::from_bits(!at(LAST).to_bits())]
    } else if matches!(bytes, [_, _, _, _, _, _, _, _, 0 | 2, 0, 0x5e, 0xfe, ..]) {
        // ISATAP, RFC 5214, section 6.1: any prefix.
        vec![at(LAST)]
    } else {
        Vec::new()
    }
}

/// Blocks whose addresses are nothing but another spelling of the IPv4 address in their last 32 bits: IPv4-mapped
/// (RFC 4291, section 2.5.5.2), and NAT64's well-known prefix (RFC 6052, section 2.1), which the resolver of an
/// IPv6-only network puts before every IPv4 address, public ones too.
const TRANSPARENT: [Ipv6Net; 2] = [v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96)];

/// Two more with the IPv4 address there: IPv4-compatible (RFC 4291, section 2.5.5.1) and IPv4-translated (RFC 2765,
/// section 2.1). Nobody should use them any more.
const WITH_V4_LAST: [Ipv6Net; 2] = [v6([0, 0, 0, 0, 0, 0, 0, 0], 96), v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96)];

/// RFC 8215.
const NAT64_LOCAL: Ipv6Net = v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48);
/// RFC 3056.
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);
/// RFC 4380.
const TEREDO: Ipv6Net = v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32);

const PRIVATE: SpecialUse = SpecialUse("a private address");
const LOOPBACK: SpecialUse = SpecialUse("a loopback address");
const UNSPECIFIED: SpecialUse = SpecialUse("an unspecified address");
const DOCUMENTATION: SpecialUse = SpecialUse("a documentation address");
const MULTICAST: SpecialUse = SpecialUse("a multicast address");
const PROTOCOL: SpecialUse = SpecialUse("a protocol assignment's address");
const RESERVED: SpecialUse = SpecialUse("a reserved address");
const AS112: SpecialUse = SpecialUse("an AS112 address");
const SIX_TO_FOUR_USE: SpecialUse = SpecialUse("a 6to4 address");

/// The IANA IPv4 Special-Purpose Address Registry, and multicast (RFC 5771). Blocks that the registry calls globally
/// reachable are here too (parts of 192.0.0.0/24, AS112, AMT): no authorization server is at an anycast address of a
/// protocol. The first that contains an address counts.
const V4: [(Ipv4Net, SpecialUse); 19] = [
    (v4([0, 0, 0, 0], 8), UNSPECIFIED),
    (v4([10, 0, 0, 0], 8), PRIVATE),
    (v4([100, 64, 0, 0], 10), SpecialUse("a carrier-grade NAT address")),
    (v4([127, 0, 0, 0], 8), LOOPBACK),
    (v4([169, 254, 0, 0], 16), SpecialUse::LINK_LOCAL),
    (v4([172, 16, 0, 0], 12), PRIVATE),
    (v4([192, 0, 0, 0], 24), PROTOCOL),
    (v4([192, 0, 2, 0], 24), DOCUMENTATION),
    (v4([192, 31, 196, 0], 24), AS112),
    (v4([192, 52, 193, 0], 24), SpecialUse("an AMT address")),
    (v4([192, 88, 99, 0], 24), SIX_TO_FOUR_USE),
    (v4([192, 168, 0, 0], 16), PRIVATE),
    (v4([192, 175, 48, 0], 24), AS112),
    (v4([198, 18, 0, 0], 15), SpecialUse("a benchmarking address")),
    (v4([198, 51, 100, 0], 24), DOCUMENTATION),
    (v4([203, 0, 113, 0], 24), DOCUMENTATION),
    (v4([224, 0, 0, 0], 4), MULTICAST),
    (v4([255, 255, 255, 255], 32), SpecialUse("the broadcast address")),
    (v4([240, 0, 0, 0], 4), RESERVED),
];

/// The IANA IPv6 Special-Purpose Address Registry, multicast and the deprecated site-local block (RFC 3879). Outside
/// of 2000::/3 nothing is allocated for global use (RFC 4291, section 2.4 and IANA's registry of the address space),
/// so what no entry names is reserved there. The first that contains an address counts.
const V6: [(Ipv6Net, SpecialUse); 20] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), UNSPECIFIED),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), LOOPBACK),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), SpecialUse("an IPv4-compatible address")),
    (NAT64_LOCAL, SpecialUse("a local NAT64 address")),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), SpecialUse("a discard-only address")),
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), SpecialUse("a segment routing address")),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), SpecialUse("a unique local address")),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), SpecialUse::LINK_LOCAL),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), SpecialUse("a site-local address")),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), MULTICAST),
    (TEREDO, SpecialUse("a Teredo address")),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), PROTOCOL),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), DOCUMENTATION),
    (SIX_TO_FOUR, SIX_TO_FOUR_USE),
    (v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48), AS112),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), DOCUMENTATION),
    // The complement of 2000::/3.
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 3), RESERVED),
    (v6([0x4000, 0, 0, 0, 0, 0, 0, 0], 3), RESERVED),
    (v6([0x6000, 0, 0, 0, 0, 0, 0, 0], 3), RESERVED),
    (v6([0x8000, 0, 0, 0, 0, 0, 0, 0], 1), RESERVED),
];

const fn v4([a, b, c, d]: [u8; 4], bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), bits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn classes() {
        for (address, name) in [
            ("0.0.0.0", "an unspecified address"),
            ("0.255.255.255", "an unspecified address"),
            ("10.0.0.0", "a private address"),
            ("10.255.255.255", "a private address"),
            ("100.64.0.0", "a carrier-grade NAT address"),
            ("100.100.100.200", "a carrier-grade NAT address"),
            ("100.127.255.255", "a carrier-grade NAT address"),
            ("127.0.0.1", "a loopback address"),
            ("127.255.255.255", "a loopback address"),
            ("169.254.0.0", "a link-local address"),
            ("169.254.169.254", "a link-local address"),
            ("169.254.255.255", "a link-local address"),
            ("172.16.0.0", "a private address"),
            ("172.31.255.255", "a private address"),
            ("192.0.0.0", "a protocol assignment's address"),
            ("192.0.0.9", "a protocol assignment's address"),
            ("192.0.0.192", "a protocol assignment's address"),
            ("192.0.2.1", "a documentation address"),
            ("192.31.196.1", "an AS112 address"),
            ("192.52.193.1", "an AMT address"),
            ("192.88.99.1", "a 6to4 address"),
            ("192.168.0.0", "a private address"),
            ("192.168.255.255", "a private address"),
            ("192.175.48.1", "an AS112 address"),
            ("198.18.0.0", "a benchmarking address"),
            ("198.19.255.255", "a benchmarking address"),
            ("198.51.100.1", "a documentation address"),
            ("203.0.113.1", "a documentation address"),
            ("224.0.0.1", "a multicast address"),
            ("239.255.255.255", "a multicast address"),
            ("240.0.0.0", "a reserved address"),
            ("255.255.255.254", "a reserved address"),
            ("255.255.255.255", "the broadcast address"),
            ("::", "an unspecified address"),
            ("::1", "a loopback address"),
            ("::2", "an IPv4-compatible address"),
            ("::127.0.0.1", "an IPv4-compatible address"),
            ("::8.8.8.8", "an IPv4-compatible address"),
            ("::ffff:127.0.0.1", "a loopback address"),
            ("::ffff:0.0.0.0", "an unspecified address"),
            ("::ffff:169.254.169.254", "a link-local address"),
            ("::169.254.169.254", "a link-local address"),
            ("::ffff:0:169.254.169.254", "a link-local address"),
            ("::ffff:0:8.8.8.8", "a reserved address"),
            ("64:ff9b::7f00:1", "a loopback address"),
            ("64:ff9b::10.0.0.1", "a private address"),
            ("64:ff9b::169.254.169.254", "a link-local address"),
            ("64:ff9b::1:7f00:1", "a reserved address"),
            ("64:ff9b:1::8.8.8.8", "a local NAT64 address"),
            ("64:ff9b:1::169.254.169.254", "a link-local address"),
            ("64:ff9b:1:a9fe:a9:fe00::", "a link-local address"),
            ("64:ff9b:1:0:a9:fea9:fe00:0", "a link-local address"),
            ("64:ff9b:2::1", "a reserved address"),
            ("100::1", "a discard-only address"),
            ("100:0:0:1::1", "a reserved address"),
            ("200::1", "a reserved address"),
            ("1fff:ffff::", "a reserved address"),
            ("2001::1", "a Teredo address"),
            ("2001:0:a9fe:a9fe::", "a link-local address"),
            ("2001:0:808:808::5601:5601", "a link-local address"),
            ("2001:1::1", "a protocol assignment's address"),
            ("2001:2::1", "a protocol assignment's address"),
            ("2001:20::1", "a protocol assignment's address"),
            ("2001:1ff:ffff::", "a protocol assignment's address"),
            ("2001:db8::1", "a documentation address"),
            ("2001:db8:ffff:ffff::", "a documentation address"),
            ("2002:7f00:1::", "a 6to4 address"),
            ("2002:808:808::", "a 6to4 address"),
            ("2002:a9fe:a9fe::1", "a link-local address"),
            ("2620:4f:8000::1", "an AS112 address"),
            ("2606:4700::5efe:10.0.0.1", "a private address"),
            ("2606:4700::200:5efe:10.0.0.1", "a private address"),
            ("2606:4700::200:5efe:169.254.169.254", "a link-local address"),
            ("3fff::1", "a documentation address"),
            ("3fff:fff:ffff::", "a documentation address"),
            ("4000::", "a reserved address"),
            ("5f00::1", "a segment routing address"),
            ("6000::", "a reserved address"),
            ("8000::", "a reserved address"),
            ("fbff::", "a reserved address"),
            ("fc00::1", "a unique local address"),
            ("fd00:ec2::254", "a unique local address"),
            ("fdff:ffff::", "a unique local address"),
            ("fe00::1", "a reserved address"),
            ("fe80::1", "a link-local address"),
            ("fe80::5efe:8.8.8.8", "a link-local address"),
            ("febf:ffff::", "a link-local address"),
            ("fec0::1", "a site-local address"),
            ("feff:ffff::", "a site-local address"),
            ("ff02::1", "a multicast address"),
        ] {
            let found = special_use(address.parse().expect(address)).map(|special_use| special_use.to_string());
            assert_eq!(found.as_deref(), Some(name), "{address}");
        }
    }

    #[test]
    fn neighbours_are_public() {
        for address in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2000::",
            "2001:200::",
            "2001:db7:ffff::",
            "2001:db9::",
            "2001:4860:4860::8888",
            "2003::",
            "2606:4700::5efe:8.8.8.8",
            "2620:4f:7fff::",
            "3ffe:ffff::",
            "3fff:1000::",
        ] {
            assert_eq!(special_use(address.parse().expect(address)), None, "{address}");
        }
    }

    fn special_v4() -> impl Strategy<Value = Ipv4Addr> {
        (0..V4.len(), any::<u32>()).prop_map(|(index, bits)| {
            let (block, _) = V4[index];
            Ipv4Addr::from_bits(block.network().to_bits() | (bits & block.hostmask().to_bits()))
        })
    }

    /// Every way in which an IPv6 address can stand for an IPv4 address, with noise where there is room.
    fn wrapped(inner: Ipv4Addr, noise: u128) -> Vec<Ipv6Addr> {
        let last = u128::from(inner.to_bits());
        // Around byte 8, which RFC 6052 keeps at zero.
        let split = |before: u32| (last >> (32 - before) << 64) | ((last << (24 + before)) & ((1 << 56) - 1));
        let isatap = ((0x2606_4700_u128 << 32) | (noise >> 96)) << 64;
        [
            last,
            (0xffff << 32) | last,
            (0xffff << 48) | last,
            (0x64_ff9b << 96) | last,
            (0x64_ff9b_0001 << 80) | (noise >> 48 << 32 & ((1 << 80) - 1)) | last,
            (0x64_ff9b_0001 << 80) | split(16),
            (0x64_ff9b_0001 << 80) | split(8),
            (0x64_ff9b_0001 << 80) | split(0),
            (0x2002 << 112) | (last << 80) | (noise >> 48),
            (0x2001_0000 << 96) | (last << 64) | (noise >> 64),
            (0x2001_0000 << 96) | (noise >> 32 & ((1 << 96) - (1 << 32))) | u128::from(!inner.to_bits()),
            isatap | (0x5efe << 32) | last,
            isatap | (0x0200_5efe << 32) | last,
        ]
        .map(Ipv6Addr::from_bits)
        .to_vec()
    }

    proptest! {
        #[test]
        fn no_wrapping_makes_a_special_use_address_public(inner in special_v4(), noise: u128) {
            let own = special_use(inner.into());
            prop_assert!(own.is_some());
            for address in wrapped(inner, noise) {
                let found = special_use(address.into());
                prop_assert!(found.is_some(), "{inner} as {address}");
                prop_assert!(!inner.is_link_local() || found == own, "{inner} as {address}");
            }
        }

        /// The standard library's own, narrower notions.
        #[test]
        fn agrees_with_the_standard_library(bits: u32, wide: u128) {
            let address = Ipv4Addr::from_bits(bits);
            let special = address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_multicast() || address.is_documentation() || address.is_unspecified()
                || address.is_broadcast();
            prop_assert!(!special || special_use(address.into()).is_some(), "{address}");
            let address = Ipv6Addr::from_bits(wide);
            let special = address.is_unique_local() || address.is_unicast_link_local() || address.is_multicast();
            prop_assert!(!special || special_use(address.into()).is_some(), "{address}");
        }
    }
}
