//! Acting as the servers: `mqnamesrv`, `mqbroker`, and `mqshutdown`, which stops those that run on a bare machine.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::local::state::SUPERVISED;

/// A program that this one can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    NameServer,
    Broker,
    Shutdown,
    /// The tool, which only translates to this program's own commands.
    Admin,
}

impl Role {
    fn of(name: &OsStr) -> Option<Self> {
        match name.to_str()? {
            "mqnamesrv" => Some(Self::NameServer),
            "mqbroker" => Some(Self::Broker),
            "mqshutdown" => Some(Self::Shutdown),
            "mqadmin" | "admin" => Some(Self::Admin),
            _ => None,
        }
    }

    /// By the name this program was called with, or by its first argument; and its arguments, the name first.
    pub(crate) fn pick(args: &[OsString]) -> Option<(Self, &[OsString])> {
        let called = args
            .first()
            .and_then(|a| Path::new(a).file_name())
            .and_then(Self::of);
        if let Some(role) = called {
            return Some((role, args));
        }
        Self::of(args.get(1)?).map(|role| (role, &args[1..]))
    }

    pub(crate) fn run(self, args: &[OsString]) -> ExitCode {
        if let Err(e) = die_with_the_supervisor() {
            eprintln!("{e:#}");
            return ExitCode::FAILURE;
        }
        match self {
            Self::NameServer => namesrv::cli::main(args.iter().cloned()),
            Self::Broker => broker::cli::main(args.iter().cloned()),
            // Translated before it comes here.
            Self::Admin => ExitCode::FAILURE,
            Self::Shutdown => match shutdown(args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    eprintln!("mqshutdown: {e:#}");
                    ExitCode::FAILURE
                }
            },
        }
    }
}

/// A pod must not outlive a supervisor that was killed: the next one could not start it again.
fn die_with_the_supervisor() -> Result<()> {
    let Ok(supervisor) = std::env::var(SUPERVISED) else {
        return Ok(());
    };
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot ask for the supervisor's death signal")?;
    // It may have died before the line above.
    let parent = Pid::as_raw(rustix::process::getppid());
    if cfg!(target_os = "linux") && parent.to_string() != supervisor {
        bail!("the supervisor (process {supervisor}) is gone");
    }
    Ok(())
}

/// `mqshutdown namesrv|broker`, as upstream's script: every such process of this user gets SIGTERM. Pods of a local cluster are left to
/// `rocketctl down`, since their supervisor would only start them again.
fn shutdown(args: &[OsString]) -> Result<()> {
    let wanted = match args.get(1).and_then(|a| a.to_str()) {
        Some("namesrv") => "mqnamesrv",
        Some("broker") => "mqbroker",
        _ => bail!("usage: mqshutdown namesrv | broker"),
    };
    let (mut stopped, mut supervised) = (0, 0);
    for entry in std::fs::read_dir("/proc")
        .context("cannot list processes; this needs /proc")?
        .flatten()
    {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<i32>().ok())
            .and_then(Pid::from_raw)
        else {
            continue;
        };
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        if !is_server(&command, wanted) || pid == rustix::process::getpid() {
            continue;
        }
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment
            .split(|b| *b == 0)
            .any(|v| v.starts_with(format!("{SUPERVISED}=").as_bytes()))
        {
            supervised += 1;
            continue;
        }
        // Somebody else's process is not ours to stop.
        if kill_process(pid, Signal::TERM).is_ok() {
            say!(
                "Send shutdown request to {wanted}({}) OK",
                pid.as_raw_nonzero()
            );
            stopped += 1;
        }
    }
    match (stopped, supervised) {
        (0, 0) => bail!("No {wanted} running."),
        (0, _) => {
            bail!("every {wanted} here belongs to a local cluster: stop that with `rocketctl down`")
        }
        _ => Ok(()),
    }
}

/// By its own name, or as this program's first argument.
fn is_server(cmdline: &[u8], wanted: &str) -> bool {
    let mut words = cmdline.split(|b| *b == 0).map(String::from_utf8_lossy);
    let program = words.next().unwrap_or_default();
    let name = Path::new(program.as_ref()).file_name().unwrap_or_default();
    name == wanted || name == "rocketctl" && words.next().is_some_and(|w| w == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn roles_by_name_and_by_argument() {
        let args = words("/opt/bin/mqbroker -c x");
        assert_eq!(Role::pick(&args), Some((Role::Broker, args.as_slice())));
        let args = words("rocketctl mqnamesrv -p");
        assert_eq!(Role::pick(&args), Some((Role::NameServer, &args[1..])));
        assert_eq!(Role::pick(&words("rocketctl up -f mqbroker")), None);
        assert_eq!(Role::pick(&words("rocketctl")), None);
    }

    #[test]
    fn servers_are_told_from_their_command_lines() {
        assert!(is_server(b"/usr/bin/mqbroker\0-c\0x\0", "mqbroker"));
        assert!(is_server(b"target/rocketctl\0mqbroker\0", "mqbroker"));
        assert!(!is_server(b"vim\0mqbroker\0", "mqbroker"));
        assert!(!is_server(b"rocketctl\0mqnamesrv\0", "mqbroker"));
    }
}
