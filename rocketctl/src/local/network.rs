//! Addresses for pods. Linux owns all of 127.0.0.0/8, so a cluster gets a /24 and every pod an address with the standard ports. Systems with a single
//! loopback address (macOS) get ports of their own on it instead.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// The last octets that pods can have. A cluster on one address has fewer: its ports end.
const LAST_HOST: u8 = 254;
/// Name servers start here, brokers later, so that name servers keep the first addresses when they are scaled.
pub(crate) const FIRST_NAME_SERVER: u8 = 1;
pub(crate) const FIRST_BROKER: u8 = 11;
/// What a broker may listen on: clients, replication, probes, elections.
const BROKER_PORTS: [u16; 5] = [10_911, 10_909, 10_912, 10_913, 40_911];
/// Ports of a cluster on a single address: a block, of which a pod takes ten.
const FIRST_PORT: u16 = 20_000;
const PORTS_PER_CLUSTER: u16 = 1_000;
const PORTS_PER_POD: u16 = 10;

/// Where a cluster lives. Kept on disk: addresses are in message ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Network {
    /// 127.second.third.0/24.
    Own { second: u8, third: u8 },
    /// 127.0.0.1 with ports from here on.
    Shared { first_port: u16 },
}

/// Which pod has which place in the network, kept for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Addresses {
    pub(crate) network: Network,
    pub(crate) places: BTreeMap<String, u8>,
}

impl Addresses {
    pub(crate) fn new(network: Network) -> Self {
        Self {
            network,
            places: BTreeMap::new(),
        }
    }

    /// The place of a pod; a new pod gets the first free one from `first` on.
    pub(crate) fn place(&mut self, pod: &str, first: u8) -> Result<u8> {
        if let Some(place) = self.places.get(pod) {
            return Ok(*place);
        }
        let last = match self.network {
            Network::Own { .. } => LAST_HOST,
            Network::Shared { .. } => (PORTS_PER_CLUSTER / PORTS_PER_POD) as u8,
        };
        let taken: BTreeSet<u8> = self.places.values().copied().collect();
        let Some(free) = (first..=last).find(|place| !taken.contains(place)) else {
            bail!("no address is left for {pod}: a local cluster has {last} of them");
        };
        self.places.insert(pod.to_owned(), free);
        Ok(free)
    }

    pub(crate) fn ip(&self, place: u8) -> IpAddr {
        match self.network {
            Network::Own { second, third } => Ipv4Addr::new(127, second, third, place).into(),
            Network::Shared { .. } => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// The port a pod really listens on, for the `index`th of its container's ports.
    pub(crate) fn port(&self, place: u8, index: usize, standard: u16) -> u16 {
        match self.network {
            Network::Own { .. } => standard,
            Network::Shared { first_port } => {
                first_port
                    + u16::from(place - 1) * PORTS_PER_POD
                    + u16::try_from(index).unwrap_or(0)
            }
        }
    }
}

/// Whether this system has more than one loopback address.
pub(crate) fn many_addresses() -> bool {
    TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).is_ok()
}

/// A network that no other cluster has and where nothing listens yet. `seed` makes the same cluster try the same networks in the same order.
pub(crate) fn choose(
    seed: &str,
    taken: &BTreeSet<Network>,
    many: bool,
    free: impl Fn(SocketAddr) -> bool,
) -> Result<Network> {
    let clear = |network: &Network| {
        let probes: Vec<(u8, u16)> = match network {
            Network::Own { .. } => [(FIRST_NAME_SERVER, 9876)]
                .into_iter()
                .chain(BROKER_PORTS.map(|port| (FIRST_BROKER, port)))
                .collect(),
            Network::Shared { first_port } => vec![
                (FIRST_NAME_SERVER, *first_port),
                (FIRST_NAME_SERVER, first_port + 100),
            ],
        };
        let addresses = Addresses::new(*network);
        !taken.contains(network)
            && probes
                .iter()
                .all(|(place, port)| free(SocketAddr::new(addresses.ip(*place), *port)))
    };
    if many {
        // FNV-1a, for a start that differs from cluster to cluster but not from run to run.
        let hash = seed.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        // 127.0 is what everybody uses, 127.255 ends in the broadcast address.
        const NETWORKS: u32 = 254 * 256;
        let networks = (0..NETWORKS).map(|step| hash.wrapping_add(step) % NETWORKS);
        let own = networks
            .map(|index| Network::Own {
                second: (1 + index / 256) as u8,
                third: (index % 256) as u8,
            })
            .find(clear);
        if let Some(network) = own {
            return Ok(network);
        }
        // Somebody listens on a standard port at every address, as a RocketMQ that runs here already does.
    }
    let blocks = (FIRST_PORT..u16::MAX - PORTS_PER_CLUSTER).step_by(usize::from(PORTS_PER_CLUSTER));
    match blocks
        .map(|first_port| Network::Shared { first_port })
        .find(clear)
    {
        Some(network) => Ok(network),
        None => bail!("no block of {PORTS_PER_CLUSTER} ports is free on 127.0.0.1"),
    }
}

pub(crate) fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_stable_and_keep_apart() {
        let first = choose("default/demo", &BTreeSet::new(), true, |_| true).unwrap();
        assert_eq!(
            first,
            choose("default/demo", &BTreeSet::new(), true, |_| true).unwrap()
        );
        let second = choose("default/demo", &BTreeSet::from([first]), true, |_| true).unwrap();
        assert_ne!(first, second);
        let Network::Own { second: octet, .. } = first else {
            panic!("{first:?}")
        };
        assert!((1..=254).contains(&octet));
        assert!(choose("x", &BTreeSet::new(), true, |_| false).is_err());
    }

    #[test]
    fn a_single_address_is_shared_by_ports() {
        let taken = BTreeSet::from([Network::Shared { first_port: 20_000 }]);
        let network = choose("x", &taken, false, |a| a.port() != 21_000).unwrap();
        assert_eq!(network, Network::Shared { first_port: 22_000 });
        let addresses = Addresses::new(network);
        assert_eq!(addresses.ip(3), IpAddr::from(Ipv4Addr::LOCALHOST));
        assert_eq!(addresses.port(1, 0, 9876), 22_000);
        assert_eq!(addresses.port(3, 2, 10_912), 22_022);
    }

    #[test]
    fn a_standard_port_taken_at_every_address_leads_to_ports_of_our_own() {
        let network = choose("x", &BTreeSet::new(), true, |a| a.port() != 9876).unwrap();
        assert_eq!(network, Network::Shared { first_port: 20_000 });
    }

    #[test]
    fn a_pod_keeps_its_place() {
        let mut addresses = Addresses::new(Network::Own {
            second: 9,
            third: 8,
        });
        assert_eq!(addresses.place("n-0", FIRST_NAME_SERVER).unwrap(), 1);
        assert_eq!(addresses.place("b-0", FIRST_BROKER).unwrap(), FIRST_BROKER);
        assert_eq!(addresses.place("n-1", FIRST_NAME_SERVER).unwrap(), 2);
        assert_eq!(addresses.place("b-0", FIRST_BROKER).unwrap(), FIRST_BROKER);
        assert_eq!(addresses.ip(2).to_string(), "127.9.8.2");
        assert_eq!(addresses.port(2, 1, 9877), 9877);
        for n in 0..251 {
            addresses.place(&format!("p-{n}"), 1).unwrap();
        }
        assert!(addresses.place("one too many", 1).is_err());
    }
}
