//! A slave's connection to its master, as probes, metrics and requests see it.

use parking_lot::Mutex;

/// What is known of the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkNow {
    /// Its master's replication address, while there is one.
    pub master: Option<String>,
    /// The stream runs.
    pub connected: bool,
    /// The master is one of ours.
    pub native: bool,
    /// Why not, when it does not.
    pub problem: Option<String>,
    /// End of the master's log, as last heard.
    pub master_end: Option<u64>,
    /// Bytes of the log received since the start.
    pub received: u64,
    /// The same in the last whole second.
    pub per_second: u64,
    /// When the master was last heard, ms since 1970.
    pub last_read_ms: i64,
    /// When it was last told something.
    pub last_write_ms: i64,
    /// How often the stream began.
    pub connects: u64,
    /// How often it broke, or did not come about.
    pub breaks: u64,
    /// Whether the own log was refused to the master's for having nothing in common; `None` while not compared.
    pub refused: Option<bool>,
    /// Bytes cut off because the master did not have them.
    pub cut: u64,
}

/// Holder of [`LinkNow`].
#[derive(Debug, Default)]
pub struct Link(Mutex<LinkNow>);

impl Link {
    /// What is known now.
    pub fn now(&self) -> LinkNow {
        self.0.lock().clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut LinkNow)) {
        change(&mut self.0.lock());
    }

    /// The stream does not run, because.
    pub(super) fn down(&self, problem: String) {
        self.update(|link| {
            link.connected = false;
            link.breaks += 1;
            link.per_second = 0;
            // The next connection compares again; one that was refused stays so until then.
            link.refused = link.refused.filter(|refused| *refused);
            link.problem = Some(problem);
        });
    }

    /// The master's log ends at least here.
    pub(super) fn heard_of(&self, master_end: u64) {
        self.update(|link| link.master_end = link.master_end.max(Some(master_end)));
    }

    /// Bytes behind the master; `None` while nothing was heard of it.
    pub fn lag(&self, own_end: u64) -> Option<u64> {
        self.0
            .lock()
            .master_end
            .map(|end| end.saturating_sub(own_end))
    }

    /// Ready when connected and no more than `max_lag` bytes behind.
    pub fn ready(&self, own_end: u64, max_lag: u64) -> Result<(), String> {
        let link = self.0.lock();
        if !link.connected {
            let why = link.problem.as_deref().unwrap_or("not tried yet");
            return Err(format!("not connected to its master: {why}"));
        }
        match link.master_end {
            None => Err("the end of the master's log is not known yet".to_owned()),
            Some(end) if end.saturating_sub(own_end) > max_lag => Err(format!(
                "{} bytes behind its master",
                end.saturating_sub(own_end)
            )),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slave_is_ready_when_connected_and_near_its_master() {
        let link = Link::default();
        assert!(link.ready(0, 10).is_err());
        link.update(|l| l.connected = true);
        assert!(link.ready(0, 10).is_err(), "nothing heard yet");
        link.heard_of(100);
        assert_eq!(link.ready(89, 10), Err("11 bytes behind its master".into()));
        assert_eq!(link.ready(90, 10), Ok(()));
        link.heard_of(50);
        assert_eq!(link.lag(90), Some(10));
        link.down("gone".into());
        assert_eq!(
            link.ready(100, 10),
            Err("not connected to its master: gone".into())
        );
    }
}
