//! One load: connections × window against one broker, in one thread and one epoll, so that the generator costs as little as it can.
//!
//! Closed loop: an answer is followed at once by the next request of its slot. Open loop: requests are due at fixed times, and the latency of each is
//! taken from the time it was due, not from the time it could be sent (no coordinated omission).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use serde::Serialize;

use super::frames::{Answer, Template};
use super::process;

/// Longest wait for the answers that are still out when the measured time ends.
const DRAIN: Duration = Duration::from_secs(10);
/// Read buffer of a connection; grows to the largest answer seen.
const READ_BUFFER: usize = 256 * 1024;
/// Share of one core above which the generator itself is the bottleneck, so the run says nothing about the broker.
const CLIENT_CORE_LIMIT: f64 = 0.95;

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Send { body_size: usize },
    Pull { count: u32 },
}

#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) kind: Kind,
    pub(super) broker: SocketAddr,
    pub(super) connections: usize,
    pub(super) window: usize,
    pub(super) topic: String,
    pub(super) queues: u32,
    /// Each message goes to the next queue; else each connection keeps to one.
    pub(super) around: bool,
    /// Requests per second in all; none is a closed loop.
    pub(super) rate: Option<f64>,
    pub(super) warmup: Duration,
    pub(super) duration: Duration,
    /// Processes whose CPU time is charged to the messages.
    pub(super) broker_pids: Vec<u32>,
}

impl Load {
    /// A closed loop of sends, as the comparison runs them.
    pub(super) fn sends(broker: SocketAddr, connections: usize, window: usize) -> Self {
        Load {
            kind: Kind::Send { body_size: 1024 },
            broker,
            connections,
            window,
            topic: "RocketctlBench".into(),
            queues: 4,
            around: false,
            rate: None,
            warmup: Duration::ZERO,
            duration: Duration::from_secs(1),
            broker_pids: Vec::new(),
        }
    }
}

/// Whether a broker answers sends with success.
pub(super) fn takes_sends(broker: SocketAddr) -> bool {
    run(&Load {
        duration: Duration::from_millis(100),
        ..Load::sends(broker, 1, 1)
    })
    .is_ok_and(|report| report.messages > 0 && report.failures == 0)
}

fn cpu_of(pids: &[u32]) -> Result<Option<f64>> {
    if pids.is_empty() {
        return Ok(None);
    }
    pids.iter()
        .map(|pid| process::cpu_seconds(*pid))
        .sum::<Result<f64>>()
        .map(Some)
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) connections: usize,
    pub(super) window: usize,
    pub(super) seconds: f64,
    pub(super) messages: u64,
    pub(super) failures: u64,
    pub(super) messages_per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) max_ms: f64,
    /// Absent where the broker's process cannot be seen.
    pub(super) broker_cpu_us_per_message: Option<f64>,
    pub(super) client_cores: f64,
    /// The generator was the bottleneck.
    pub(super) void: bool,
    pub(super) first_failure: Option<String>,
}

struct Slot {
    template: Template,
    due: Instant,
}

struct Link {
    stream: TcpStream,
    slots: Vec<Slot>,
    idle: Vec<u32>,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
    written: usize,
    wants_write: bool,
    /// Offset of the next pull of this connection.
    offset: u64,
}

struct Tally {
    messages: u64,
    failures: u64,
    latency: Histogram<u64>,
    first_failure: Option<String>,
}

impl Tally {
    fn new() -> Result<Self> {
        Ok(Tally {
            messages: 0,
            failures: 0,
            latency: Histogram::new_with_bounds(1, 120_000_000, 3)?,
            first_failure: None,
        })
    }
}

pub(super) fn run(load: &Load) -> Result<Report> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let body = vec![
        b'x';
        match load.kind {
            Kind::Send { body_size } => body_size,
            Kind::Pull { .. } => 0,
        }
    ];
    let mut links = Vec::with_capacity(load.connections);
    for n in 0..load.connections {
        let stream = TcpStream::connect_timeout(&load.broker, Duration::from_secs(3))
            .with_context(|| format!("connecting to {}", load.broker))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll::add(
            &poll,
            &stream,
            epoll::EventData::new_u64(n as u64),
            epoll::EventFlags::IN,
        )?;
        let queue = n as u32 % load.queues;
        let slots = (0..load.window as u32)
            .map(|slot| Slot {
                template: match load.kind {
                    Kind::Send { .. } if load.around => {
                        Template::send_around(&load.topic, load.queues, slot, &body)
                    }
                    Kind::Send { .. } => Template::send(&load.topic, queue, slot, &body),
                    Kind::Pull { count } => Template::pull(&load.topic, queue, slot, count),
                },
                due: Instant::now(),
            })
            .collect();
        links.push(Link {
            stream,
            slots,
            idle: (0..load.window as u32).rev().collect(),
            input: vec![0; READ_BUFFER],
            filled: 0,
            output: Vec::new(),
            written: 0,
            wants_write: false,
            offset: 0,
        });
    }

    let began = Instant::now();
    let (measure_from, stop_at) = (began + load.warmup, began + load.warmup + load.duration);
    let mut generator = Generator {
        load,
        poll,
        links,
        counter: 0,
        next_due: began,
        turn: 0,
    };
    let mut tally = Tally::new()?;
    let mut measured: Option<(Instant, f64, Option<f64>)> = None;
    let own = std::process::id();
    let mut events = Vec::with_capacity(load.connections);

    if load.rate.is_none() {
        for n in 0..generator.links.len() {
            generator.refill(n, began)?;
        }
    }
    let mut finished = None;
    loop {
        let now = Instant::now();
        if measured.is_none() && now >= measure_from {
            measured = Some((now, process::cpu_seconds(own)?, cpu_of(&load.broker_pids)?));
            tally = Tally::new()?;
        }
        if finished.is_none() && now >= stop_at {
            let Some((from, own_cpu, broker_cpu)) = measured else {
                bail!("nothing was measured")
            };
            let broker = cpu_of(&load.broker_pids)?
                .zip(broker_cpu)
                .map(|(after, before)| after - before);
            finished = Some((
                now - from,
                process::cpu_seconds(own)? - own_cpu,
                broker,
                std::mem::replace(&mut tally, Tally::new()?),
            ));
        }
        if finished.is_some() && (generator.in_flight() == 0 || now > stop_at + DRAIN) {
            break;
        }
        let timeout = if finished.is_some() {
            Duration::from_millis(50)
        } else {
            if load.rate.is_some() {
                generator.send_due(now)?;
            }
            let until = if measured.is_none() {
                measure_from
            } else {
                stop_at
            }
            .saturating_duration_since(now);
            if load.rate.is_some() {
                until.min(generator.next_due.saturating_duration_since(now))
            } else {
                until
            }
        };
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        events.clear();
        match epoll::wait(
            &generator.poll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&timeout),
        ) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        for event in &events {
            let n = event.data.u64() as usize;
            generator.serve(n, &mut tally, finished.is_none())?;
        }
    }

    let Some((elapsed, client_cpu, broker_cpu, tally)) = finished else {
        bail!("nothing was measured")
    };
    let seconds = elapsed.as_secs_f64();
    let ms = |q: f64| tally.latency.value_at_quantile(q) as f64 / 1000.0;
    let client_cores = client_cpu / seconds;
    Ok(Report {
        connections: load.connections,
        window: load.window,
        seconds,
        messages: tally.messages,
        failures: tally.failures,
        messages_per_second: tally.messages as f64 / seconds,
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        p999_ms: ms(0.999),
        max_ms: tally.latency.max() as f64 / 1000.0,
        broker_cpu_us_per_message: broker_cpu
            .filter(|_| tally.messages > 0)
            .map(|s| s * 1e6 / tally.messages as f64),
        client_cores,
        void: client_cores > CLIENT_CORE_LIMIT,
        first_failure: tally.first_failure,
    })
}

struct Generator<'a> {
    load: &'a Load,
    poll: OwnedFd,
    links: Vec<Link>,
    counter: u64,
    next_due: Instant,
    /// Whose turn it is to send, in an open loop.
    turn: usize,
}

impl Generator<'_> {
    fn in_flight(&self) -> usize {
        self.links
            .iter()
            .map(|l| l.slots.len() - l.idle.len())
            .sum()
    }

    /// Closed loop: every idle slot of the connection sends.
    fn refill(&mut self, n: usize, now: Instant) -> Result<()> {
        let now_ms = unix_ms();
        let link = &mut self.links[n];
        while let Some(slot) = link.idle.pop() {
            let s = &mut link.slots[slot as usize];
            s.due = now;
            self.counter += 1;
            s.template
                .write(self.counter, link.offset, now_ms, &mut link.output);
        }
        self.flush(n)
    }

    /// Open loop: sends all that is due and for which a slot is free, spread over the connections.
    fn send_due(&mut self, now: Instant) -> Result<()> {
        let Some(rate) = self.load.rate else {
            return Ok(());
        };
        let (gap, now_ms) = (Duration::from_secs_f64(1.0 / rate), unix_ms());
        while self.next_due <= now {
            let free = (0..self.links.len())
                .map(|i| (self.turn + i) % self.links.len())
                .find(|&i| !self.links[i].idle.is_empty());
            let Some(n) = free else { break };
            self.turn = n + 1;
            let link = &mut self.links[n];
            let Some(slot) = link.idle.pop() else { break };
            let s = &mut link.slots[slot as usize];
            s.due = self.next_due;
            self.counter += 1;
            s.template
                .write(self.counter, link.offset, now_ms, &mut link.output);
            self.next_due += gap;
            self.flush(n)?;
        }
        Ok(())
    }

    fn serve(&mut self, n: usize, tally: &mut Tally, go_on: bool) -> Result<()> {
        let link = &mut self.links[n];
        if link.input.len() == link.filled {
            let longer = link.input.len() * 2;
            link.input.resize(longer, 0);
        }
        match link.stream.read(&mut link.input[link.filled..]) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(got) => link.filled += got,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e).context("reading answers"),
        }
        let (now, mut at) = (Instant::now(), 0);
        while let Some((answer, used)) = Answer::take(&link.input[at..link.filled])? {
            at += used;
            let Some(slot) = link.slots.get(answer.slot as usize) else {
                bail!("an answer for slot {}", answer.slot)
            };
            let micros = now.saturating_duration_since(slot.due).as_micros() as u64;
            link.idle.push(answer.slot);
            let messages = match self.load.kind {
                Kind::Send { .. } => u64::from(answer.code == 0),
                Kind::Pull { .. } => {
                    // At the end of the queue it starts again at its beginning.
                    link.offset = match (
                        answer.code,
                        answer.field("nextBeginOffset"),
                        answer.field("maxOffset"),
                    ) {
                        (0, Some(next), Some(max)) if next < max => next as u64,
                        (_, _, _) => answer.field("minOffset").unwrap_or(0).max(0) as u64,
                    };
                    if answer.code == 0 {
                        answer.records()
                    } else {
                        0
                    }
                }
            };
            tally.messages += messages;
            if messages == 0 && !(answer.code == 19 && matches!(self.load.kind, Kind::Pull { .. }))
            {
                tally.failures += 1;
                tally.first_failure.get_or_insert_with(|| answer.remark());
            } else {
                tally.latency.saturating_record(micros.max(1));
            }
        }
        link.input.copy_within(at..link.filled, 0);
        link.filled -= at;
        if go_on && self.load.rate.is_none() {
            self.refill(n, now)
        } else {
            self.flush(n)
        }
    }

    /// Writes what the socket takes, and asks to be told when it takes more.
    fn flush(&mut self, n: usize) -> Result<()> {
        let link = &mut self.links[n];
        link.flush()?;
        let blocked = link.written < link.output.len();
        if blocked != link.wants_write {
            link.wants_write = blocked;
            let flags = if blocked {
                epoll::EventFlags::IN | epoll::EventFlags::OUT
            } else {
                epoll::EventFlags::IN
            };
            epoll::modify(
                &self.poll,
                &link.stream,
                epoll::EventData::new_u64(n as u64),
                flags,
            )?;
        }
        Ok(())
    }
}

impl Link {
    fn flush(&mut self) -> Result<()> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(n) => self.written += n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Ok(());
                }
                Err(e) => return Err(e).context("sending requests"),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers every whole frame with success, as a broker would.
    fn echo_broker() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    loop {
                        let mut length = [0; 4];
                        if stream.read_exact(&mut length).is_err() {
                            return;
                        }
                        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
                        stream.read_exact(&mut frame).unwrap();
                        let header_len =
                            u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
                        let header: serde_json::Value =
                            serde_json::from_slice(&frame[4..4 + header_len]).unwrap();
                        let answer =
                            format!(r#"{{"code":0,"flag":1,"opaque":{}}}"#, header["opaque"]);
                        let mut out = ((4 + answer.len()) as u32).to_be_bytes().to_vec();
                        out.extend_from_slice(&(answer.len() as u32).to_be_bytes());
                        out.extend_from_slice(answer.as_bytes());
                        stream.write_all(&out).unwrap();
                    }
                });
            }
        });
        at
    }

    fn load(rate: Option<f64>) -> Load {
        Load {
            kind: Kind::Send { body_size: 100 },
            broker: echo_broker(),
            connections: 2,
            window: 4,
            topic: "T".into(),
            queues: 4,
            around: false,
            rate,
            warmup: Duration::from_millis(20),
            duration: Duration::from_millis(200),
            broker_pids: vec![std::process::id()],
        }
    }

    #[test]
    fn a_closed_loop_counts_every_answer() {
        let report = run(&load(None)).unwrap();
        assert!(report.messages > 8, "{report:?}");
        assert_eq!(report.failures, 0);
        assert!(report.p50_ms > 0.0 && report.p50_ms <= report.max_ms);
        assert!(report.broker_cpu_us_per_message.is_some());
    }

    #[test]
    fn an_open_loop_never_sends_more_than_was_due() {
        let report = run(&load(Some(500.0))).unwrap();
        assert!((1..=130).contains(&report.messages), "{report:?}");
    }
}
