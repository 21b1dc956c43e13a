//! A cluster of the original moves to ours while it is used, by the commands of `docs/migration.md`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use remoting::protocol::response_code;

use crate::rig::*;

const VERSION: &str = "4.9.7";
/// Version of the original's tools.
const TOOLS: &str = "java-4.9.8";
/// Messages in the cluster before it moves.
const BEFORE: i32 = 600;
/// Longest time without an acknowledged send: the cluster takes messages all the time.
const LONGEST_GAP: Duration = Duration::from_secs(3);
/// Longest time in which nothing of the moving group can be read.
const LONGEST_SILENCE: Duration = Duration::from_secs(20);

/// The commands under a mark of the page, as a reader would type them.
fn documented(name: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migration.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mark = format!("<!-- tests/clients: {name} -->");
    let (_, rest) = page.split_once(&mark).expect(&mark);
    let mut lines = rest.lines().skip_while(|l| l.trim() != "```sh").skip(1);
    let commands: Vec<&str> = lines.by_ref().take_while(|l| l.trim() != "```").collect();
    assert!(!commands.is_empty(), "{mark}");
    commands.join("\n")
}

/// Where messages were acknowledged, and how long nobody took one.
#[derive(Default)]
struct Sent {
    /// By body: group, queue and offset.
    acknowledged: std::sync::Mutex<BTreeMap<String, (String, i32, i64)>>,
    longest_gap_ms: AtomicU32,
    refused: AtomicU32,
    stop: AtomicBool,
}

/// What a producer does, with a route of its own for each message: writable queues of brokers that have a master.
async fn produce(names: String, sent: Arc<Sent>) {
    let admin = remoting::admin::Admin::new(remoting::client::RemotingClient::default(), names)
        .with_timeout(Duration::from_secs(2));
    let mut last = Instant::now();
    for n in 0.. {
        if sent.stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let Ok(Some(route)) = admin.topic_route(TOPIC).await else {
            continue;
        };
        let open: Vec<_> = route
            .queue_datas
            .iter()
            .filter(|q| q.perm & 2 != 0)
            .filter_map(|q| {
                let broker = route
                    .broker_datas
                    .iter()
                    .find(|b| b.broker_name == q.broker_name)?;
                Some((&q.broker_name, broker.broker_addrs.get(&0)?))
            })
            .collect();
        let Some((group, address)) = open.get(n % open.len().max(1)) else {
            continue;
        };
        let body = format!("live-{n}-{}", "y".repeat(300));
        let queue = i32::try_from(n).unwrap() / 2 % QUEUES;
        match admin.invoke(address, send(TOPIC, queue, &body, "")).await {
            Ok(answer) if answer.code == response_code::SUCCESS => {
                let gap = u32::try_from(last.elapsed().as_millis()).unwrap();
                sent.longest_gap_ms.fetch_max(gap, Ordering::Relaxed);
                last = Instant::now();
                let field = |name: &str| answer.ext(name).unwrap().parse::<i64>().unwrap();
                let place = (
                    (*group).clone(),
                    i32::try_from(field("queueId")).unwrap(),
                    field("queueOffset"),
                );
                sent.acknowledged.lock().unwrap().insert(body, place);
            }
            _ => {
                sent.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// What a consumer of the moving group sees: it reads on from the slave while there is no master, and commits to whom it can.
#[derive(Default)]
struct Read {
    found: std::sync::Mutex<BTreeMap<(i32, i64), String>>,
    longest_silence_ms: AtomicU32,
    stop: AtomicBool,
}

async fn consume(names: String, read: Arc<Read>) {
    let admin = remoting::admin::Admin::new(remoting::client::RemotingClient::default(), names)
        .with_timeout(Duration::from_secs(2));
    let mut next = [0_i64; QUEUES as usize];
    let mut last = Instant::now();
    while !read.stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let Ok(Some(route)) = admin.topic_route(TOPIC).await else {
            continue;
        };
        let group = route
            .broker_datas
            .iter()
            .find(|b| b.broker_name == "mixed-a");
        let Some(address) = group.and_then(|g| g.broker_addrs.values().next()) else {
            continue;
        };
        for queue in 0..QUEUES {
            let at = &mut next[usize::try_from(queue).unwrap()];
            let Ok((messages, header)) = admin.pull(address, TOPIC, queue, *at, 32).await else {
                continue;
            };
            let silence = u32::try_from(last.elapsed().as_millis()).unwrap();
            read.longest_silence_ms
                .fetch_max(silence, Ordering::Relaxed);
            last = Instant::now();
            assert!(header.next_begin_offset >= *at, "sent back from {at}");
            *at = header.next_begin_offset;
            for m in messages {
                let body = String::from_utf8(m.body).unwrap();
                let place = (queue, m.queue_offset);
                let before = read.found.lock().unwrap().insert(place, body);
                assert_eq!(before, None, "an offset twice");
            }
            let _ = admin
                .update_consumer_offset(address, GROUP, TOPIC, queue, *at)
                .await;
        }
    }
}

pub(crate) async fn as_documented(scene: Scene) -> String {
    let names = scene.name_server().await;
    let home = scene.folder.path();
    let ha = |address: &str| {
        let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
        format!(
            "brokerId=0\nbrokerRole=ASYNC_MASTER\nhaListenPort={}\n",
            port + 1
        )
    };
    let (old, other) = (scene.java_address(), scene.java_address());
    let conf = scene.conf("broker", "mixed-a", &old, &names, &ha(&old));
    let original = scene.start_java(VERSION, &conf);
    let conf = scene.conf("other", "mixed-b", &other, &names, &ha(&other));
    let stays = scene.start_java(VERSION, &conf);
    scene.fill(&old, "old", BEFORE).await;
    scene.fill(&other, "other", QUEUES).await;
    let before = scene.messages(&old).await;

    // What the reader has at hand.
    let bin = home.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let tool = |name: &str, text: String| std::fs::write(bin.join(name), text).unwrap();
    let java = scene.java(TOOLS);
    let words: Vec<_> = std::iter::once(java.get_program())
        .chain(java.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    tool(
        "mqadmin",
        format!(
            "exec {} org.apache.rocketmq.tools.command.MQAdminStartup \"$@\"\n",
            words.join(" ")
        ),
    );
    tool(
        "mqshutdown",
        format!(
            "kill {}\nwhile kill -0 {} 2> /dev/null; do sleep 0.1; done\n",
            original.id(),
            original.id()
        ),
    );
    // The reaping that a shell would do.
    let reaper = tokio::task::spawn_blocking(move || original.wait());
    let path = format!(
        "{}:{}",
        mqbroker().parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let new = scene.our_address(30911);
    let (new_host, _) = new.split_once(':').unwrap();
    let follow = |name: &'static str| {
        let mut command = Command::new("bash");
        command
            .args(["-eu", "-c", &documented(name)])
            .current_dir(home)
            .env("PATH", &path)
            .env("NAMESRV", names.address().to_string())
            .env("OLD", &old)
            .env("NEW", &new)
            .env("NEW_HOST", new_host)
            // The test's producer looks at its route before every message.
            .env("QUIET_SECONDS", "2");
        async move {
            let output = tokio::task::spawn_blocking(move || command.output().unwrap());
            let output = output.await.unwrap();
            assert!(output.status.success(), "{name}: {output:?}");
        }
    };

    let (sent, read) = (Arc::new(Sent::default()), Arc::new(Read::default()));
    let list = names.address().to_string();
    let producer = tokio::spawn(produce(list.clone(), Arc::clone(&sent)));
    let consumer = tokio::spawn(consume(list, Arc::clone(&read)));

    follow("live-configure").await;
    let stop = StopAtEnd(home.to_owned());
    follow("live-start").await;
    follow("live-catch-up").await;
    // One that falls due after the move.
    let delayed = format!("DELAY\u{1}{DELAY_LEVEL}\u{2}");
    scene.sent(&old, 1, "delayed-live", &delayed).await;
    follow("live-close").await;
    follow("live-catch-up").await;
    let committed = scene
        .admin
        .consumer_offset(&old, GROUP, TOPIC, 0)
        .await
        .unwrap();
    follow("live-switch").await;
    follow("live-check").await;
    assert!(reaper.await.is_ok());
    let after = scene
        .admin
        .consumer_offset(&new, GROUP, TOPIC, 0)
        .await
        .unwrap();
    assert!(
        after >= committed,
        "committed {committed:?}, then {after:?}"
    );

    // Both groups take messages again, and what was delayed comes, once.
    let known = sent.acknowledged.lock().unwrap().len();
    until("sends to the group that moved", async || {
        let all = sent.acknowledged.lock().unwrap();
        all.len() > known + 20 && all.iter().any(|(_, at)| at.0 == "mixed-a" && at.2 > 200)
    })
    .await;
    let delivered = async || {
        let all = scene.messages(&new).await;
        all.values()
            .filter(|(body, _)| body == "delayed-live")
            .count()
    };
    until("what was delayed", async || delivered().await > 0).await;
    sent.stop.store(true, Ordering::Relaxed);
    producer.await.unwrap();
    let (on_new, on_other) = (scene.messages(&new).await, scene.messages(&other).await);
    until("the consumer read everything", async || {
        read.found.lock().unwrap().len() >= on_new.len()
    })
    .await;
    read.stop.store(true, Ordering::Relaxed);
    consumer.await.unwrap();

    assert_eq!(delivered().await, 1);
    for (at, message) in &before {
        assert_eq!(on_new.get(at), Some(message), "{at:?}");
    }
    let acknowledged = sent.acknowledged.lock().unwrap().clone();
    for (body, (group, queue, offset)) in &acknowledged {
        let of_group = if group == "mixed-a" {
            &on_new
        } else {
            &on_other
        };
        let found = of_group.get(&(*queue, *offset)).map(|(body, _)| body);
        assert_eq!(found, Some(body), "{group} {queue} {offset}");
    }
    let gap = Duration::from_millis(sent.longest_gap_ms.load(Ordering::Relaxed).into());
    let silence = Duration::from_millis(read.longest_silence_ms.load(Ordering::Relaxed).into());
    assert!(gap < LONGEST_GAP, "{gap:?} without a send");
    assert!(silence < LONGEST_SILENCE, "{silence:?} without a pull");
    drop(stop);
    stays.stop().await;
    names.shutdown().await;
    format!(
        "{} sends acknowledged, none lost, {} refused, longest gap {gap:?}; longest time without a pull {silence:?}",
        acknowledged.len(),
        sent.refused.load(Ordering::Relaxed),
    )
}

/// The broker that the page's commands started ends with the scenario.
struct StopAtEnd(std::path::PathBuf);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.0.join("broker.pid")).unwrap_or_default();
        let pid = pid
            .trim()
            .parse()
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
