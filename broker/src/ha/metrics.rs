//! Replication in `/metrics`.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use super::{Ha, SyncRule};
use crate::broker::Broker;
use crate::http::{header, value};
use crate::role::Role;

impl Ha {
    pub(crate) fn write_metrics(&self, out: &mut String, broker: &Broker) {
        if let Some(group) = broker.group.get() {
            return group.write_metrics(out);
        }
        match broker.role.now().role {
            Role::Slave => self.write_link(out, broker),
            _ => self.write_replicas(out, broker),
        }
    }

    fn write_replicas(&self, out: &mut String, broker: &Broker) {
        value(
            out,
            "rocketmq_ha_unsettled",
            "1 while a master waits to ask its slaves for what it may have lost",
            "gauge",
            u8::from(self.unsettled().is_some()),
        );
        let replicas = self.replicas.list();
        let written = broker.store.written();
        let max_gap = SyncRule::new(&broker.config()).max_gap;
        value(
            out,
            "rocketmq_ha_slaves",
            "slaves that are connected",
            "gauge",
            replicas.len(),
        );
        value(
            out,
            "rocketmq_ha_replicated_position",
            "up to here enough slaves have the log",
            "gauge",
            self.replicated(),
        );
        let lag = |acked: u64| written.saturating_sub(acked);
        type Figure = fn(lag: u64, max_gap: u64, transferred: u64) -> u64;
        let figures: [(&str, &str, &str, Figure); 3] = [
            (
                "rocketmq_ha_slave_lag_bytes",
                "bytes that a slave did not report to have",
                "gauge",
                |lag, _, _| lag,
            ),
            (
                "rocketmq_ha_slave_in_sync",
                "1 when a slave is near enough to count",
                "gauge",
                |lag, max_gap, _| u64::from(lag <= max_gap),
            ),
            (
                "rocketmq_ha_slave_transferred_bytes_total",
                "bytes of the log sent to a slave",
                "counter",
                |_, _, transferred| transferred,
            ),
        ];
        for (name, help, kind, figure) in figures {
            header(out, name, help, kind);
            for replica in &replicas {
                let figure = figure(
                    lag(replica.acked.load(Ordering::Relaxed)),
                    max_gap,
                    replica.transferred.load(Ordering::Relaxed),
                );
                let _ = writeln!(out, "{name}{{slave=\"{}\"}} {figure}", replica.peer);
            }
        }
    }

    fn write_link(&self, out: &mut String, broker: &Broker) {
        let link = self.link.now();
        value(
            out,
            "rocketmq_ha_connected",
            "1 while the slave follows its master",
            "gauge",
            u8::from(link.connected),
        );
        if let Some(lag) = self.link.lag(broker.store.written()) {
            value(
                out,
                "rocketmq_ha_lag_bytes",
                "bytes of the master's log, as last heard, that are not here",
                "gauge",
                lag,
            );
        }
        for (name, help, figure) in [
            (
                "rocketmq_ha_received_bytes_total",
                "bytes of the log received from the master",
                link.received,
            ),
            (
                "rocketmq_ha_connects_total",
                "how often the slave began to follow",
                link.connects,
            ),
            (
                "rocketmq_ha_cut_bytes_total",
                "bytes cut off because the master did not have them",
                link.cut,
            ),
        ] {
            value(out, name, help, "counter", figure);
        }
    }
}
