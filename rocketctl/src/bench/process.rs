//! CPU time and memory of processes, from `/proc`.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

/// User plus system time that `pid` has used so far, in seconds (resolution: one clock tick, 10 ms).
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid}"))?;
    parse_cpu_ticks(&text)
        .map(|ticks| ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
        .context("unreadable /proc stat line")
}

/// Fields 14 and 15, counted after the command's name, which may hold blanks and brackets.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident and anonymous resident memory in bytes.
pub(super) fn memory(pid: u32) -> Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid}"))?;
    let field = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name))
            .and_then(|v| v.trim().trim_end_matches(" kB").trim().parse::<u64>().ok())
            .map(|kib| kib * 1024)
    };
    Ok((
        field("VmRSS:").context("no VmRSS")?,
        field("RssAnon:").context("no RssAnon")?,
    ))
}

/// The process that listens on this address (or on its port at every address), if it is one of ours to look into.
pub(super) fn listener_of(at: SocketAddr) -> Option<u32> {
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        inodes.extend(
            fs::read_to_string(table)
                .unwrap_or_default()
                .lines()
                .skip(1)
                .filter_map(|line| listening_inode(line, at)),
        );
    }
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten()
                .any(|fd| {
                    fs::read_link(fd.path())
                        .ok()
                        .and_then(|t| {
                            t.to_str()?
                                .strip_prefix("socket:[")?
                                .strip_suffix(']')?
                                .parse::<u64>()
                                .ok()
                        })
                        .is_some_and(|inode| inodes.contains(&inode))
                })
        })
}

/// The socket of a line of `/proc/net/tcp` that listens (state 0A) there. The kernel prints an IPv4 address as the number its bytes make in memory.
fn listening_inode(line: &str, at: SocketAddr) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (address, port) = fields.get(1)?.rsplit_once(':')?;
    let everywhere = address.bytes().all(|b| b == b'0');
    let here = match at.ip() {
        IpAddr::V4(ip) => u32::from_str_radix(address, 16) == Ok(u32::from_ne_bytes(ip.octets())),
        // Told apart by port alone.
        IpAddr::V6(_) => address.len() == 32,
    };
    let listens = u16::from_str_radix(port, 16).ok()? == at.port() && *fields.get(3)? == "0A";
    if listens && (everywhere || here) {
        fields.get(9)?.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_name_with_blanks_and_brackets() {
        let line = "42 (a (b) c) S 1 42 42 0 -1 4194560 5 0 0 0 17 25 0 0 20 0 9 0 100 1 1";
        assert_eq!(parse_cpu_ticks(line), Some(42));
        assert_eq!(parse_cpu_ticks("nonsense"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory_and_a_listener() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let me = std::process::id();
        assert_eq!(listener_of(socket.local_addr().unwrap()), Some(me));
        let (all, anonymous) = memory(me).unwrap();
        assert!(all >= anonymous && anonymous > 0);
        assert!(cpu_seconds(me).unwrap() >= 0.0);
    }
}
