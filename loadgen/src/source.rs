//! Where connections come from: one address has only so many ports towards one broker. Called by `run`
//! before the first connection, and by whoever opens one.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::bail;

/// The range of ports that Linux uses where nobody has changed it.
const PORTS: (u16, u16) = (32_768, 60_999);
/// Where the range stands.
const RANGE_FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Ports that this run leaves to others, and to connections that linger after their end.
const PORTS_SPARE: usize = 1_000;
/// Addresses of 127.0.0.0/8 that are used at most.
const LOOPBACKS_MAX: usize = 250;

/// The local addresses for a number of connections; empty where one is enough and the system chooses.
/// The error says what is missing.
pub(crate) fn addresses(
    target: SocketAddr,
    wished: &[IpAddr],
    clients: usize,
) -> anyhow::Result<Vec<IpAddr>> {
    let range = fs::read_to_string(RANGE_FILE).ok().and_then(|text| port_range(&text));
    choose(target, wished, clients, range.unwrap_or(PORTS))
}

/// The address and port to bind connection `number` to.
pub(crate) fn of(addresses: &[IpAddr], number: usize) -> Option<SocketAddr> {
    let address = addresses.get(number.checked_rem(addresses.len())?)?;
    Some(SocketAddr::new(*address, 0))
}

fn choose(
    target: SocketAddr,
    wished: &[IpAddr],
    clients: usize,
    (low, high): (u16, u16),
) -> anyhow::Result<Vec<IpAddr>> {
    let ports = usize::from(high.saturating_sub(low)) + 1;
    let ports = ports.saturating_sub(PORTS_SPARE).max(1);
    let needed = clients.div_ceil(ports);
    if let Some(other) = wished.iter().find(|address| address.is_ipv4() != target.is_ipv4()) {
        bail!("--source {other} cannot reach {target}: one is IPv4, the other IPv6");
    }
    let over_loopback = target.ip().is_loopback() && target.is_ipv4();
    if wished.is_empty() && needed > 1 && over_loopback && needed <= LOOPBACKS_MAX {
        let first = Ipv4Addr::LOCALHOST.to_bits();
        return Ok((0..needed as u32).map(|n| Ipv4Addr::from_bits(first + n).into()).collect());
    }
    let given = wished.len().max(1);
    if needed > given {
        bail!(
            "{clients} connections to {target} need {needed} local addresses with {ports} ports each, and \
             there are {given}: name more with --source, widen net.ipv4.ip_local_port_range, or give \
             fewer clients"
        );
    }
    Ok(wished.to_vec())
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_ascii_whitespace();
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_loopback_connections_come_from_several_addresses() {
        assert_eq!(choose(loopback(), &[], 20_000, PORTS).unwrap(), Vec::<IpAddr>::new());
        let several = choose(loopback(), &[], 60_000, PORTS).unwrap();
        assert_eq!(several, ["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(ip));
        assert_eq!(of(&several, 4), Some("127.0.0.2:0".parse().unwrap()));
        assert_eq!(of(&[], 4), None);
    }

    #[test]
    fn ports_that_are_missing_are_said_with_the_way_out() {
        let far = "192.0.2.1:1883".parse().unwrap();
        assert!(choose(far, &[], 20_000, PORTS).is_ok());
        let error = choose(far, &[], 100_000, PORTS).unwrap_err().to_string();
        assert!(error.contains("4 local addresses") && error.contains("--source"), "{error}");
        let four = ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"].map(ip);
        assert_eq!(choose(far, &four, 100_000, PORTS).unwrap(), four);
        assert!(choose(far, &[ip("::1")], 10, PORTS).is_err());
    }

    #[test]
    fn the_range_of_ports_is_read() {
        assert_eq!(port_range("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(port_range("x"), None);
        assert!(choose(loopback(), &[], 1, (9, 2)).is_ok());
    }

    fn loopback() -> SocketAddr {
        "127.0.0.1:1883".parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
