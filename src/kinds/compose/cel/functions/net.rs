//! IP addresses and networks. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    super::value::Value,
    Asked, Entry,
    Form::{Function, Method},
    Outcome,
};

pub(super) const ENTRIES: &[Entry] = &[
    ("isIP", Function, 1, 1, |asked| Ok(Value::Bool(read_address(text(asked)?).is_some()))),
    ("ip.isCanonical", Function, 1, 1, |asked| {
        let text = text(asked)?;
        let address = asked.or_refused(read_address(text))?;
        Ok(Value::Bool(write(&address) == text))
    }),
    ("family", Method, 1, 1, |asked| Ok(Value::Int(if address(asked)?.is_ipv4() { 4 } else { 6 }))),
    ("isUnspecified", Method, 1, 1, |asked| Ok(Value::Bool(address(asked)?.is_unspecified()))),
    ("isLoopback", Method, 1, 1, |asked| Ok(Value::Bool(address(asked)?.is_loopback()))),
    ("isLinkLocalUnicast", Method, 1, 1, |asked| Ok(Value::Bool(is_link_local(address(asked)?)))),
    ("isLinkLocalMulticast", Method, 1, 1, |asked| {
        Ok(Value::Bool(match address(asked)? {
            IpAddr::V4(address) => matches!(address.octets(), [224, 0, 0, _]),
            IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
        }))
    }),
    ("isGlobalUnicast", Method, 1, 1, |asked| {
        let address = address(asked)?;
        let is_none = address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::BROADCAST);
        let is_other = address.is_loopback() || address.is_multicast() || is_link_local(address);
        Ok(Value::Bool(!is_none && !is_other))
    }),
    ("isCIDR", Function, 1, 1, |asked| Ok(Value::Bool(read_network(text(asked)?).is_some()))),
    ("cidr", Function, 1, 1, |asked| {
        let (address, length) = asked.or_refused(read_network(text(asked)?))?;
        Ok(Value::Cidr(address, length))
    }),
    ("containsIP", Method, 2, 2, contains_address),
    ("containsCIDR", Method, 2, 2, contains_network),
    ("prefixLength", Method, 1, 1, |asked| match asked.of {
        [Value::Cidr(_, length)] => Ok(Value::Int(i64::from(*length))),
        _ => asked.no(),
    }),
    ("masked", Method, 1, 1, |asked| match asked.of {
        [Value::Cidr(address, length)] => Ok(Value::Cidr(masked(address, *length), *length)),
        _ => asked.no(),
    }),
];

fn text<'a>(asked: &'a Asked<'_>) -> Result<&'a str, super::Halt> {
    let [Value::String(text)] = asked.of else { return asked.no() };
    asked.spend(text.len())?;
    Ok(text)
}

fn address(asked: &Asked<'_>) -> Result<IpAddr, super::Halt> {
    match asked.of {
        [Value::Ip(address)] => Ok(*address),
        _ => asked.no(),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// An address, neither with a zone nor of version 4 in version 6.
fn read_address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    match address {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

/// The one form of an address.
pub(super) fn write(address: &IpAddr) -> String {
    address.to_string()
}

fn read_network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.rsplit_once('/')?;
    let address = read_address(address)?;
    let is_number = !length.is_empty() && length.bytes().all(|digit| digit.is_ascii_digit());
    let is_plain = length == "0" || !length.starts_with('0');
    let length: u8 = (is_number && is_plain).then(|| length.parse().ok()).flatten()?;
    (length <= bits(&address)).then_some((address, length))
}

fn bits(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: &IpAddr, length: u8) -> IpAddr {
    let rest = u32::from(bits(address).saturating_sub(length));
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

pub(super) fn ip(asked: &Asked<'_>) -> Outcome {
    asked.or_refused(read_address(text(asked)?)).map(Value::Ip)
}

/// The address of a network, as it was written.
pub(super) fn ip_of(asked: &Asked<'_>) -> Outcome {
    match asked.of {
        [Value::Cidr(address, _)] => Ok(Value::Ip(*address)),
        _ => asked.no(),
    }
}

fn is_within(address: &IpAddr, network: &IpAddr, length: u8) -> bool {
    address.is_ipv4() == network.is_ipv4() && masked(address, length) == masked(network, length)
}

fn contains_address(asked: &Asked<'_>) -> Outcome {
    let (network, length, address) = match asked.of {
        [Value::Cidr(network, length), Value::Ip(address)] => (network, *length, *address),
        [Value::Cidr(network, length), Value::String(text)] => {
            asked.spend(text.len())?;
            (network, *length, asked.or_refused(read_address(text))?)
        }
        _ => return asked.no(),
    };
    Ok(Value::Bool(is_within(&address, network, length)))
}

fn contains_network(asked: &Asked<'_>) -> Outcome {
    let (network, length, (inner, inner_length)) = match asked.of {
        [Value::Cidr(network, length), Value::Cidr(inner, inner_length)] => (network, *length, (*inner, *inner_length)),
        [Value::Cidr(network, length), Value::String(text)] => {
            asked.spend(text.len())?;
            (network, *length, asked.or_refused(read_network(text))?)
        }
        _ => return asked.no(),
    };
    Ok(Value::Bool(length <= inner_length && is_within(&inner, network, length)))
}
