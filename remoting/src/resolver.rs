//! Names to addresses: a hosts file first, then the system's resolver.
//!
//! The file named by `ROCKETMQ_HOSTS_FILE` has the format of `/etc/hosts`; a name that stands on
//! several lines has several addresses. It is read anew for each look-up, so whoever writes it can
//! move a name at any time: the very same configuration then works with and without a cluster's DNS.

use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Environment variable that names the hosts file.
pub const HOSTS_FILE_ENV: &str = "ROCKETMQ_HOSTS_FILE";

#[derive(Clone, Debug, Default)]
pub struct Resolver {
    hosts_file: Option<PathBuf>,
}

impl Resolver {
    pub fn from_env() -> Self {
        Self {
            hosts_file: std::env::var_os(HOSTS_FILE_ENV)
                .filter(|path| path != OsStr::new(""))
                .map(PathBuf::from),
        }
    }

    pub fn with_hosts_file(path: impl Into<PathBuf>) -> Self {
        Self {
            hosts_file: Some(path.into()),
        }
    }

    /// All addresses of one `host:port`. A name without an address is an error.
    pub async fn lookup(&self, address: &str) -> io::Result<Vec<SocketAddr>> {
        let invalid = |what: &str| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{what} in address {address:?}"),
            )
        };
        let address = address.trim();
        let address = address.strip_prefix("http://").unwrap_or(address);
        if let Ok(literal) = address.parse() {
            return Ok(vec![literal]);
        }
        let (host, port) = address.rsplit_once(':').ok_or_else(|| invalid("no port"))?;
        let port: u16 = port.parse().map_err(|_| invalid("unusable port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(invalid("no host"));
        }
        let known = self.hosts_file_addresses(host)?;
        if !known.is_empty() {
            return Ok(known
                .into_iter()
                .map(|ip| SocketAddr::new(ip, port))
                .collect());
        }
        let mut found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
        found.dedup();
        if found.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{host} has no address"),
            ));
        }
        Ok(found)
    }

    /// Every address of a list `host:port;host2:port`, in order, each once. Fails only when nothing
    /// in the list resolves: one missing name server must not keep the others from being used.
    pub async fn resolve(&self, list: &str) -> io::Result<Vec<SocketAddr>> {
        let mut all: Vec<SocketAddr> = Vec::new();
        let mut failure = None;
        for address in list
            .split([';', ','])
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            match self.lookup(address).await {
                Ok(found) => {
                    for address in found {
                        if !all.contains(&address) {
                            all.push(address);
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(address, %error, "address not resolved");
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(error) if all.is_empty() => Err(error),
            _ => Ok(all),
        }
    }

    fn hosts_file_addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let Some(path) = &self.hosts_file else {
            return Ok(Vec::new());
        };
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(parse_hosts(&text, host)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn parse_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let host = host.trim_end_matches('.');
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else {
            continue;
        };
        if words.any(|name| name.trim_end_matches('.').eq_ignore_ascii_case(host))
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_on_several_lines_has_several_addresses() {
        let text =
            "# comment\n127.0.0.1 a b # b too\n127.0.0.2\tB\n::1 c\nnonsense a\n127.0.0.1 a\n";
        let ips = |host| {
            parse_hosts(text, host)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(ips("a"), ["127.0.0.1"]);
        assert_eq!(ips("b"), ["127.0.0.1", "127.0.0.2"]);
        assert_eq!(ips("c."), ["::1"]);
        assert!(ips("d").is_empty());
    }

    #[tokio::test]
    async fn the_file_is_read_at_each_look_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        let resolver = Resolver::with_hosts_file(&path);
        std::fs::write(&path, "127.0.0.7 broker.test\n").unwrap();
        assert_eq!(
            resolver.lookup("broker.test:10911").await.unwrap(),
            ["127.0.0.7:10911".parse().unwrap()]
        );
        std::fs::write(&path, "127.0.0.8 broker.test\n127.0.0.9 broker.test\n").unwrap();
        assert_eq!(
            resolver
                .resolve("broker.test:1; 127.0.0.9:1;[::1]:2;no port")
                .await
                .unwrap(),
            [
                "127.0.0.8:1".parse().unwrap(),
                "127.0.0.9:1".parse().unwrap(),
                "[::1]:2".parse().unwrap()
            ]
        );
        assert!(resolver.resolve("no port").await.is_err());
    }
}
