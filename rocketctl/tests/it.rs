//! The laptop runner with real processes: every test has a data folder and so a network of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, spec: &str) -> PathBuf {
        let path = self.folder.path().join("cluster.yaml");
        let text = format!(
            "apiVersion: rocketcluster.io/v1alpha1\nkind: RocketCluster\nmetadata: {{name: demo}}\nspec: {spec}\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rocketctl"));
        command
            .env_remove("NAMESRV_ADDR")
            .env("ROCKETCTL_DATA_DIR", self.data())
            .args(args);
        command
    }

    /// A command that hangs fails the test instead of holding it up.
    fn run(&self, args: &[&str]) -> Output {
        let child = self
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        match receiver.recv_timeout(PATIENCE) {
            Ok(output) => output.unwrap(),
            Err(_) => {
                let _ = kill_process(pid, Signal::KILL);
                panic!("{args:?} does not end");
            }
        }
    }

    /// Standard output of a command that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "{args:?}: {}\n{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Standard error of a command that must fail with this exit code.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{args:?}: {}\n{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stderr)
    }

    fn up(&self, file: &Path, more: &[&str]) -> String {
        let file = file.to_str().unwrap();
        self.ok(&[&["up", "-d", "-f", file], more].concat())
    }

    fn pods(&self) -> Vec<Value> {
        let status: Value = serde_json::from_str(&self.ok(&["status", "-o", "json"])).unwrap();
        status[0]["state"]["pods"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    fn pod(&self, name: &str) -> Value {
        self.pods()
            .into_iter()
            .find(|p| p["name"] == name)
            .unwrap_or_default()
    }

    fn bodies(&self, topic: &str) -> Vec<String> {
        let lines = self.ok(&["consume", "-t", topic, "--from-first", "-o", "json"]);
        let mut bodies: Vec<String> = lines
            .lines()
            .map(|l| {
                serde_json::from_str::<Value>(l).unwrap()["body"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        bodies.sort();
        bodies
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Nothing may outlive a failed test; after a good one there is nothing to stop.
        let _ = self.run(&["down", "--delete-data"]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
    }
}

fn pid(value: &Value) -> Pid {
    Pid::from_raw(i32::try_from(value["pid"].as_i64().unwrap()).unwrap()).unwrap()
}

#[test]
fn a_cluster_lives_through_crashes_changes_and_restarts() {
    let f = Fixture::new();
    let shown = f.up(
        &f.file("{mode: multi-master, nameServer: {replicas: 1}}"),
        &[],
    );
    assert!(
        shown.contains("demo-broker-1-0")
            && shown.contains("registered in")
            && shown.contains("#Cluster Name"),
        "{shown}"
    );
    assert!(shown.contains("producer.setNamesrvAddr(\"127."), "{shown}");
    assert!(
        f.pods().iter().all(|p| p["phase"] == "Ready"),
        "{:?}",
        f.pods()
    );

    for n in 0..10 {
        f.ok(&[
            "send",
            "-t",
            "orders",
            "-m",
            &format!("m{n}"),
            "--tag",
            if n < 5 { "low" } else { "high" },
            "-k",
            &format!("key{n}"),
        ]);
    }
    let all: Vec<String> = (0..10).map(|n| format!("m{n}")).collect();
    assert_eq!(f.bodies("orders"), all);
    let high = f.ok(&["consume", "-t", "orders", "--tags", "high", "--from-first"]);
    assert_eq!(high.lines().count(), 5, "{high}");
    assert!(
        f.ok(&["topic", "route", "orders"]).contains("broker-1"),
        "an automatic topic is on every master"
    );
    let found: Value = serde_json::from_str(&f.ok(&[
        "message", "query", "-t", "orders", "-k", "key7", "-o", "json",
    ]))
    .unwrap();
    assert_eq!(found[0]["body"], "m7");
    let id = found[0]["offsetId"].as_str().unwrap();
    assert!(f.ok(&["message", "view", id]).contains("m7"));
    let unique = found[0]["uniqueId"].as_str().unwrap();
    assert!(
        f.ok(&["message", "view", unique, "-t", "orders"])
            .contains("m7")
    );

    // A pod that dies is started again, with everything it had.
    let before = f.pod("demo-broker-0-0");
    kill_process(pid(&before), Signal::KILL).unwrap();
    until("the restart", || {
        let pod = f.pod("demo-broker-0-0");
        pod["restarts"] == 1 && pod["phase"] == "Ready"
    });
    assert_eq!(f.bodies("orders"), all);

    // The same file changes nothing; another one only what it changes.
    let same = f.up(
        &f.file("{mode: multi-master, nameServer: {replicas: 1}}"),
        &[],
    );
    assert!(
        same.starts_with("demo is running already") && same.lines().count() == 1,
        "{same}"
    );
    let name_server = f.pod("demo-namesrv-0")["pid"].clone();
    f.up(&f.file("{mode: multi-master, nameServer: {replicas: 2}, broker: {groups: 3, config: {fileReservedTime: 7}}}"), &[]);
    assert_eq!(
        f.pod("demo-namesrv-0")["pid"],
        name_server,
        "name servers were not touched"
    );
    assert_eq!(f.pods().len(), 5);
    let config: Value = serde_json::from_str(&f.ok(&["broker", "config", "-o", "json"])).unwrap();
    let reserved: Vec<&Value> = config
        .as_object()
        .unwrap()
        .values()
        .map(|c| &c["fileReservedTime"])
        .collect();
    assert_eq!(reserved, vec!["7", "7", "7"]);
    let file = f.file("{mode: multi-master, nameServer: {replicas: 2}, broker: {groups: 2}}");
    assert!(
        f.fails(1, &["up", "-f", file.to_str().unwrap()])
            .contains("broker groups cannot be removed yet")
    );

    let addresses = |f: &Fixture| {
        f.pods()
            .iter()
            .map(|p| p["address"].clone())
            .collect::<Vec<_>>()
    };
    let had = addresses(&f);
    let stopped = f.ok(&["down"]);
    assert!(stopped.contains("its data stays in"), "{stopped}");
    assert!(f.ok(&["status"]).contains("demo: stopped"));
    f.up(
        &f.file("{mode: multi-master, nameServer: {replicas: 1}, broker: {groups: 3}}"),
        &[],
    );
    assert_eq!(
        addresses(&f),
        had.into_iter()
            .filter(|a| !a.as_str().unwrap().ends_with(".2:9876"))
            .collect::<Vec<_>>()
    );
    assert_eq!(f.bodies("orders"), all);
    f.ok(&["down", "demo", "--delete-data"]);
    assert!(!f.data().join("default/demo").exists());
    assert!(
        f.fails(1, &["down"])
            .contains("no local cluster is running")
    );
}

#[test]
fn a_group_shares_its_progress() {
    let f = Fixture::new();
    f.up(&f.file("{mode: single-master}"), &[]);
    f.ok(&["topic", "create", "t", "-q", "3"]);
    f.ok(&["send", "-t", "t", "-m", "x", "-c", "6", "-q"]);
    assert_eq!(
        f.ok(&["consume", "-t", "t", "-g", "G", "--from-first", "-c", "4"])
            .lines()
            .count(),
        4
    );
    let progress: Value =
        serde_json::from_str(&f.ok(&["consumer", "progress", "-g", "G", "-o", "json"])).unwrap();
    assert_eq!(progress["diffTotal"], 2, "{progress}");
    assert_eq!(
        f.ok(&["consume", "-t", "t", "-g", "G", "-c", "2"])
            .lines()
            .count(),
        2,
        "it goes on where it was"
    );
    assert!(f.ok(&["consumer", "progress"]).contains('G'));
    f.ok(&["topic", "delete", "t"]);
    assert!(
        f.fails(1, &["topic", "route", "t"])
            .contains("no broker has the topic t")
    );
}

#[test]
fn ctrl_c_stops_brokers_before_name_servers() {
    let f = Fixture::new();
    let file = f.file("{mode: single-master}");
    let mut child = f
        .command(&["up", "-f", file.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.any(|l| l.starts_with("Ctrl-C stops it")));
    let pods: Vec<Pid> = f.pods().iter().map(pid).collect();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let rest: Vec<String> = lines.collect();
    assert!(child.wait().unwrap().success());
    let place = |name: &str| {
        rest.iter()
            .position(|l| l.contains(name) && l.ends_with("stopped"))
            .unwrap_or_else(|| panic!("{name}: {rest:?}"))
    };
    assert!(
        place("demo-broker-0-0") < place("demo-namesrv-0"),
        "{rest:?}"
    );
    assert!(
        rest.last()
            .unwrap()
            .contains("demo is stopped; its data stays in")
    );
    assert!(
        pods.iter().all(|p| test_kill_process(*p).is_err()),
        "no process is left"
    );
}

#[test]
#[cfg(target_os = "linux")]
fn pods_die_with_their_supervisor_and_come_back_with_the_next() {
    let f = Fixture::new();
    let file = f.file("{mode: single-master}");
    f.up(&file, &[]);
    f.ok(&["send", "-t", "t", "-m", "kept"]);
    let status: Value = serde_json::from_str(&f.ok(&["status", "-o", "json"])).unwrap();
    let supervisor =
        Pid::from_raw(i32::try_from(status[0]["state"]["supervisor"].as_i64().unwrap()).unwrap())
            .unwrap();
    let pods: Vec<Pid> = f.pods().iter().map(pid).collect();
    kill_process(supervisor, Signal::KILL).unwrap();
    until("the end of the pods", || {
        pods.iter().all(|p| test_kill_process(*p).is_err())
    });
    assert!(f.ok(&["status"]).contains("demo: stopped"));
    f.up(&file, &[]);
    assert_eq!(f.bodies("t"), vec!["kept"]);
}

#[test]
fn one_loopback_address_is_enough() {
    let f = Fixture::new();
    let file = f.file("{mode: multi-master}");
    f.up(&file, &["--single-address"]);
    assert!(
        f.pods()
            .iter()
            .all(|p| p["address"].as_str().unwrap().starts_with("127.0.0.1:")),
        "{:?}",
        f.pods()
    );
    f.ok(&["send", "-t", "t", "-m", "a", "-c", "8", "-q"]);
    assert_eq!(f.bodies("t").len(), 8);
}

/// The master's address and the lag of each slave, once the slaves have everything.
fn slaves_caught_up(f: &Fixture) {
    until("the slaves to have everything", || {
        let pods = f.pods();
        let mut slaves = pods.iter().filter(|p| p["role"] == "slave").peekable();
        slaves.peek().is_some() && slaves.all(|p| p["lagBytes"] == 0)
    });
}

fn roles(f: &Fixture) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    f.pods()
        .iter()
        .filter(|p| p["program"] == "mqbroker")
        .map(|p| (text(&p["name"]), text(&p["role"])))
        .collect()
}

#[test]
fn masters_with_slaves_roll_change_their_mode_and_serve_from_the_slave() {
    let f = Fixture::new();
    let spec = |mode: &str, hours: u32| {
        format!(
            "{{mode: {mode}, nameServer: {{replicas: 1}}, broker: {{config: {{fileReservedTime: {hours}}}}}}}"
        )
    };
    let shown = f.up(&f.file(&spec("2m-2s-async", 48)), &[]);
    assert!(shown.contains("registered as slave in"), "{shown}");
    let all = ["0-0", "0-1", "1-0", "1-1"].map(|n| {
        let role = if n.ends_with("-0") { "master" } else { "slave" };
        (format!("demo-broker-{n}"), role.to_owned())
    });
    assert_eq!(roles(&f), all);
    f.ok(&["send", "-t", "orders", "-m", "x", "-c", "40", "-q"]);
    slaves_caught_up(&f);
    let table = f.ok(&["status"]);
    assert!(table.contains("slave") && table.contains("0 B"), "{table}");

    // The other mode, by a restart of the masters alone: what a slave does is the same in both.
    let slaves = |f: &Fixture| -> Vec<Value> {
        ["demo-broker-0-1", "demo-broker-1-1"]
            .map(|name| f.pod(name)["pid"].clone())
            .to_vec()
    };
    let before = slaves(&f);
    f.up(&f.file(&spec("2m-2s-sync", 48)), &[]);
    assert_eq!(slaves(&f), before, "slaves were not touched");
    f.ok(&["send", "-t", "orders", "-m", "x", "-c", "40", "-q"]);

    let behind: Vec<Value> = f
        .pods()
        .iter()
        .filter(|p| p["role"] == "slave")
        .map(|p| p["lagBytes"].clone())
        .collect();
    assert_eq!(
        behind,
        [0, 0],
        "a sync master answers when its slave has it"
    );

    // Every pod gets the changed file, a slave before its master.
    f.up(&f.file(&spec("2m-2s-sync", 7)), &[]);
    let since = |name: &str| f.pod(name)["since"].as_i64().unwrap();
    for group in 0..2 {
        assert!(
            since(&format!("demo-broker-{group}-1")) < since(&format!("demo-broker-{group}-0"))
        );
    }
    assert_eq!(f.bodies("orders").len(), 80);
    assert_eq!(roles(&f), all);
}

#[test]
fn an_elected_group_rolls_its_leader_last_and_outlives_it() {
    let f = Fixture::new();
    let spec = |hours: u32| {
        format!(
            "{{mode: dledger, nameServer: {{replicas: 1}}, broker: {{config: {{fileReservedTime: {hours}}}}}}}"
        )
    };
    f.up(&f.file(&spec(48)), &[]);
    let leader = |f: &Fixture| {
        let led: Vec<String> = roles(f)
            .into_iter()
            .filter(|(_, role)| role == "leader")
            .map(|(name, _)| name)
            .collect();
        (led.len() == 1).then(|| led[0].clone())
    };
    let first = leader(&f).expect("one leader");
    let followers = || f.pods().into_iter().filter(|p| p["role"] == "follower");
    assert_eq!(followers().count(), 2);
    let term = f.pod(&first)["term"].as_i64().unwrap();
    assert!(f.ok(&["status"]).contains(&format!("leader (term {term})")));
    until("the followers to have everything", || {
        followers().count() == 2 && followers().all(|p| p["lagBytes"] == 0)
    });
    f.ok(&["send", "-t", "orders", "-m", "x", "-c", "20", "-q"]);

    f.up(&f.file(&spec(7)), &[]);
    let since = |name: &str| f.pod(name)["since"].as_i64().unwrap();
    for n in 0..3 {
        let name = format!("demo-broker-0-{n}");
        assert!(
            name == first || since(&name) < since(&first),
            "{first} led, so it is restarted last"
        );
    }

    // The leader dies: another one is elected, with everything, before or after the dead one is back.
    let mut led = None;
    until("a leader", || {
        led = leader(&f);
        led.is_some()
    });
    let led = led.unwrap();
    kill_process(pid(&f.pod(&led)), Signal::KILL).unwrap();
    until("the death to be seen", || f.pod(&led)["restarts"] == 1);
    until("a send to be taken", || {
        f.run(&["send", "-t", "orders", "-m", "x", "-q"])
            .status
            .success()
    });
    until("every member", || {
        f.pods().iter().all(|p| p["phase"] == "Ready") && leader(&f).is_some()
    });
    assert!(f.bodies("orders").len() >= 21);
}

#[test]
fn an_elected_group_grows_and_shrinks_by_an_edit_of_its_file() {
    let f = Fixture::new();
    let up = |members: u32| {
        let spec = format!(
            "{{mode: dledger, nameServer: {{replicas: 1}}, broker: {{replicasPerGroup: {members}}}}}"
        );
        f.up(&f.file(&spec), &[]);
        f.ok(&["send", "-t", "orders", "-m", "x", "-c", "5", "-q"]);
    };
    let brokers = || -> Vec<(Value, Value)> {
        let all = f.pods().into_iter().filter(|p| p["program"] == "mqbroker");
        all.map(|p| (p["name"].clone(), p["pid"].clone())).collect()
    };
    up(3);
    let three = brokers();
    for members in [5, 3, 5] {
        up(members);
        let now = brokers();
        assert_eq!(now.len(), members as usize);
        assert_eq!(now[..3], three, "nobody was restarted");
    }
    // Two of five may go: who joined counts, also who joined again with what it had.
    for (_, pid) in &three[1..] {
        let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    until("a send to be taken", || {
        f.run(&["send", "-t", "orders", "-m", "x", "-q"])
            .status
            .success()
    });
    until("all to be back", || {
        f.pods().iter().all(|p| p["phase"] == "Ready")
    });
    assert!(f.bodies("orders").len() >= 21);
}

#[test]
fn masters_stop_before_their_slaves() {
    let f = Fixture::new();
    let file = f.file("{mode: 2m-2s-sync, nameServer: {replicas: 1}, broker: {groups: 1}}");
    let mut child = f
        .command(&["up", "--single-address", "-f", file.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.any(|l| l.starts_with("Ctrl-C stops it")));
    f.ok(&["send", "-t", "t", "-m", "a", "-c", "8", "-q"]);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let rest: Vec<String> = lines.collect();
    assert!(child.wait().unwrap().success());
    let order: Vec<&str> = rest
        .iter()
        .filter(|l| l.ends_with("stopped"))
        .filter_map(|l| l.split_whitespace().nth(1))
        .collect();
    assert_eq!(
        order,
        ["demo-broker-0-0", "demo-broker-0-1", "demo-namesrv-0"],
        "{rest:?}"
    );
}

#[test]
fn mistakes_are_one_clear_line() {
    let f = Fixture::new();
    let up = |spec: &str| f.fails(1, &["up", "-f", f.file(spec).to_str().unwrap()]);
    assert!(
        up("{mode: 2m-2s-sync, broker: {replicasPerGroup: 1}}")
            .contains("need a slave: replicasPerGroup of 2 or more"),
        "{}",
        up("{mode: 2m-2s-sync, broker: {replicasPerGroup: 1}}")
    );
    assert!(
        up("{mode: single-master, broker: {replica: 2}}")
            .contains("spec.broker: unknown field replica"),
        "{}",
        up("{mode: single-master, broker: {replica: 2}}")
    );
    let missing = f.fails(1, &["up", "-f", "/nowhere.yaml"]);
    assert!(
        missing.starts_with("rocketctl: cannot read /nowhere.yaml") && missing.lines().count() == 1,
        "{missing}"
    );
    let none = f.fails(1, &["topic", "list"]);
    assert!(
        none.starts_with("rocketctl: no name server is given with -n: no local cluster is running"),
        "{none}"
    );
    let dead = f.fails(1, &["-n", "127.0.0.1:1", "topic", "list"]);
    assert!(
        dead.contains("127.0.0.1:1") && dead.lines().count() == 1,
        "{dead}"
    );
    f.fails(2, &["nonsense"]);
    f.fails(2, &["send"]);
}

#[test]
fn whoever_reads_the_output_may_stop_early() {
    let f = Fixture::new();
    let mut child = f
        .command(&["status"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn it_is_the_servers_by_its_first_argument_or_its_name() {
    let f = Fixture::new();
    assert!(f.ok(&["mqnamesrv", "-p"]).contains("listenPort=9876"));
    assert!(f.ok(&["mqbroker", "-p"]).contains("listenPort=10911"));
    let link = f.folder.path().join("mqnamesrv");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_rocketctl"), &link).unwrap();
    let output = Command::new(&link).arg("-p").output().unwrap();
    assert!(text(&output.stdout).contains("listenPort=9876"));
    assert!(
        f.fails(1, &["mqshutdown"])
            .contains("usage: mqshutdown namesrv | broker")
    );
}
