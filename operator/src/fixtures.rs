//! A Kubernetes small enough to hold in the head: objects in a map, server-side apply, preconditions, and one function, [`Fake::tick`], that does what
//! the StatefulSet controller, the kubelet and the servers in the pods would do next. Time passes only by `tick`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use operator_core::build::config_hash;
use operator_core::plan::{Member, MemberChange, Peer, Replication, ServerReport, SlaveSeen};
use serde_json::{Value, json};

use crate::context::Context;
use crate::inspect::{self, Inspect};
use crate::metrics::Metrics;

/// Plural, namespace, name.
type Key = (String, String, String);

#[derive(Default)]
pub(crate) struct State {
    pub(crate) objects: BTreeMap<Key, Value>,
    /// What each field manager applied last.
    applied: BTreeMap<Key, Value>,
    last_number: u64,
    /// Calls that change something, as `PATCH services/demo-namesrv`, without events.
    pub(crate) writes: Vec<String>,
    /// Events as `reason: note`.
    pub(crate) events: Vec<String>,
    calls: usize,
    /// The write with this number fails: before it takes effect, or after.
    pub(crate) crash: Option<(usize, Crash)>,
    pub(crate) crashed: bool,
    /// Brokers that the name servers do not list.
    pub(crate) unregistered: BTreeSet<String>,
    /// Most pods that were away or not ready at the same time, once all had been there.
    pub(crate) worst: usize,
    all_were_there: bool,
    /// Pods that were ready at the last tick, if all were.
    there_now: usize,
    /// Ticks that a pod with a log still needs until it has caught up.
    behind: BTreeMap<String, u32>,
    /// Bytes behind that a slave reports beyond that.
    pub(crate) lag: BTreeMap<String, i64>,
    /// Pods that were ready once and are asked for still.
    known: BTreeSet<String>,
    /// Most pods of one group of brokers that were restarting at the same time.
    pub(crate) worst_of_group: usize,
    /// Groups that elect, by StatefulSet.
    pub(crate) elected: BTreeMap<String, Elected>,
    /// What must never happen, and did.
    pub(crate) violations: Vec<String>,
    /// Values of keys that brokers run with, by pod.
    pub(crate) values: BTreeMap<String, BTreeMap<String, String>>,
    /// What brokers say to a change of their keys.
    pub(crate) refuses: Option<String>,
}

/// A group that elects its master, as its members agree on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Elected {
    /// By id, whether it votes.
    pub(crate) members: BTreeMap<String, bool>,
    pub(crate) leader: Option<String>,
    pub(crate) term: i64,
    whole: bool,
}

/// Ticks that a broker which follows needs after its start until it has caught up.
const CATCH_UP_TICKS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    Before,
    After,
}

#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

const NAMESPACE: &str = "shop";

impl Fake {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A process of the operator, fresh from its start.
    pub(crate) fn context(&self) -> Arc<Context> {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, std::convert::Infallible>(fake.answer(request).await) }
        });
        let client = Client::new(service, "default");
        Arc::new(Context::new(
            client,
            Default::default(),
            Arc::new(self.clone()),
            Arc::new(Metrics::default()),
            Some("test".to_owned()),
        ))
    }

    /// As `kubectl apply` of a RocketCluster.
    pub(crate) fn user_applies(&self, name: &str, spec: Value) {
        let mut state = self.state();
        let key = key("rocketclusters", name);
        let mut object = state.objects.get(&key).cloned().unwrap_or_else(|| {
            json!({
                "apiVersion": "rocketcluster.io/v1alpha1", "kind": "RocketCluster",
                "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-of-{name}"), "generation": 0},
            })
        });
        if object["spec"] != spec {
            object["spec"] = spec;
            object["metadata"]["generation"] =
                json!(object["metadata"]["generation"].as_i64().unwrap() + 1);
        }
        state.put(key, object);
    }

    pub(crate) fn get(&self, plural: &str, name: &str) -> Option<Value> {
        self.state().objects.get(&key(plural, name)).cloned()
    }

    /// As somebody else's write.
    pub(crate) fn edit(&self, plural: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        let mut object = state.objects[&key(plural, name)].clone();
        edit(&mut object);
        state.put(key(plural, name), object);
    }

    pub(crate) fn insert(&self, plural: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.state().put(key(plural, &name), object);
    }

    pub(crate) fn remove(&self, plural: &str, name: &str) {
        self.state().objects.remove(&key(plural, name)).unwrap();
    }

    pub(crate) fn names(&self, plural: &str) -> Vec<String> {
        self.state()
            .objects
            .keys()
            .filter(|(p, ..)| p == plural)
            .map(|(.., name)| name.clone())
            .collect()
    }

    /// Everything but what counts up: to compare two worlds.
    pub(crate) fn essence(&self) -> BTreeMap<String, Value> {
        let state = self.state();
        let essential = state
            .objects
            .iter()
            .filter(|((plural, ..), _)| plural != "pods");
        essential
            .map(|((plural, _, name), object)| {
                let mut object = object.clone();
                for field in ["resourceVersion", "uid", "generation"] {
                    object["metadata"].as_object_mut().unwrap().remove(field);
                }
                if plural == "services" && object["spec"]["clusterIP"] != "None" {
                    object["spec"]["clusterIP"] = Value::Null;
                }
                let status = object["status"].take();
                object["conditions"] = status["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|c| json!([c["type"], c["status"], c["reason"]]))
                    .collect();
                (format!("{plural}/{name}"), object)
            })
            .collect()
    }

    /// The call that changes something `calls` calls from now fails.
    pub(crate) fn crash_soon(&self, calls: usize, when: Crash) {
        let mut state = self.state();
        let at = state.calls + calls;
        state.crash = Some((at, when));
    }

    pub(crate) fn all_are_ready(&self) -> bool {
        let state = self.state();
        let pods = state.objects.keys().filter(|(plural, ..)| plural == "pods");
        state.there_now > 0 && pods.count() == state.there_now && state.behind.is_empty()
    }

    /// One step of everybody else: StatefulSets make and remove pods, pods start with the files as they are now and become ready.
    pub(crate) fn tick(&self) {
        let mut state = self.state();
        let sets: Vec<(Key, Value)> = state
            .objects
            .iter()
            .filter(|((plural, ..), _)| plural == "statefulsets")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let (mut wanted, mut away, mut keep) = (0, 0, BTreeSet::new());
        for (key, mut set) in sets {
            let revision = config_hash(set["spec"]["template"].to_string().as_bytes());
            let replicas = set["spec"]["replicas"].as_i64().unwrap();
            let status = json!({"replicas": replicas, "observedGeneration": set["metadata"]["generation"], "updateRevision": revision});
            if set["status"] != status {
                set["status"] = status;
                state.put(key.clone(), set.clone());
            }
            for ordinal in 0..replicas {
                let name = format!("{}-{ordinal}", key.2);
                keep.insert(name.clone());
                wanted += 1;
                let there = state.objects.get(&self::key("pods", &name)).cloned();
                if there.as_ref().is_none_or(|pod| !is_ready(pod)) {
                    away += 1;
                }
                let ready = state.advance(&name);
                let pod = match there {
                    Some(mut pod) => {
                        let bad = pod["spec"]["containers"][0]["image"]
                            .as_str()
                            .unwrap()
                            .ends_with(":bad");
                        if bad {
                            pod["status"]["containerStatuses"] = json!([{"name": "x", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]);
                        } else {
                            pod["metadata"]["annotations"]["alive"] = json!("yes");
                            let ready = if ready { "True" } else { "False" };
                            pod["status"]["conditions"] =
                                json!([{"type": "Ready", "status": ready}]);
                        }
                        pod
                    }
                    None => state.new_pod(&set, &revision, &name),
                };
                state.put(self::key("pods", &name), pod);
            }
        }
        state
            .objects
            .retain(|(plural, _, name), _| plural != "pods" || keep.contains(name));
        state.elect();
        state.look_for_violations(&keep);
        state.there_now = if away == 0 { wanted } else { 0 };
        if away == 0 && wanted > 0 {
            state.all_were_there = true;
        } else if state.all_were_there {
            state.worst = state.worst.max(away);
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let segments: Vec<&str> = parts
            .uri
            .path()
            .split('/')
            .filter(|s| !s.is_empty())
            .collect();
        let at = segments
            .iter()
            .position(|s| *s == "namespaces")
            .expect("only namespaced calls are made");
        let (plural, name, sub) = (
            segments[at + 2],
            segments.get(at + 3).copied(),
            segments.get(at + 4).copied(),
        );
        let mut state = self.state();
        if plural == "events" {
            let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
            state
                .events
                .push(format!("{}: {}", text("reason"), text("note")));
            return respond(200, &body);
        }
        // A read that fails is like a process that dies before its next write.
        state.calls += usize::from(parts.method != Method::GET);
        let call = state.calls;
        let crash = state
            .crash
            .filter(|(at, _)| *at == call && parts.method != Method::GET);
        if let Some((_, crash)) = crash {
            state.crashed = true;
            if crash == Crash::After {
                state.perform(
                    &parts.method,
                    plural,
                    name,
                    sub,
                    parts.uri.query().unwrap_or_default(),
                    body,
                );
            }
            return failure(500, "the process died");
        }
        state.perform(
            &parts.method,
            plural,
            name,
            sub,
            parts.uri.query().unwrap_or_default(),
            body,
        )
    }
}

fn key(plural: &str, name: &str) -> Key {
    (plural.to_owned(), NAMESPACE.to_owned(), name.to_owned())
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"][0]["status"] == "True"
}

/// The lines of a file as pairs.
fn pairs(file: &str) -> BTreeMap<String, String> {
    file.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// `demo-broker-0` and `2` of `demo-broker-0-2`.
fn place(pod: &str) -> (String, String) {
    let (set, ordinal) = pod.rsplit_once('-').unwrap();
    (set.to_owned(), ordinal.to_owned())
}

impl State {
    /// The file a pod started with, when its process runs.
    fn running(&self, pod: &str) -> Option<BTreeMap<String, String>> {
        let pod = self.objects.get(&key("pods", pod))?;
        let annotations = &pod["metadata"]["annotations"];
        (annotations["alive"] == "yes")
            .then(|| pairs(annotations["started-with"].as_str().unwrap_or_default()))
    }

    fn elects(&self, pod: &str) -> bool {
        let file = self.running(pod).unwrap_or_default();
        file.contains_key("enableDLegerCommitLog")
    }

    /// A process that runs comes nearer to the end of its master's log. Returns whether it is ready.
    fn advance(&mut self, pod: &str) -> bool {
        let Some(file) = self.running(pod) else {
            return !self.behind.contains_key(pod) || !pod.contains("broker");
        };
        if let Some(ticks) = self.behind.get_mut(pod) {
            *ticks = ticks.saturating_sub(1);
            if *ticks > 0 {
                return false;
            }
            self.behind.remove(pod);
        }
        if !file.contains_key("enableDLegerCommitLog") {
            return true;
        }
        let (set, ordinal) = place(pod);
        let group = self.elected.get(&set);
        group.is_some_and(|g| {
            g.leader.is_some() && g.members.get(&format!("n{ordinal}")) == Some(&true)
        })
    }

    /// Members that run and have the whole log.
    fn active(&self, set: &str) -> Vec<String> {
        let group = self.elected.get(set).cloned().unwrap_or_default();
        let there = |id: &&String| {
            let pod = format!("{set}-{}", id.trim_start_matches('n'));
            self.running(&pod).is_some() && !self.behind.contains_key(&pod)
        };
        let voters = group.members.iter().filter(|(_, votes)| **votes);
        voters.map(|(id, _)| id).filter(there).cloned().collect()
    }

    fn elect(&mut self) {
        let pods: Vec<String> = self
            .objects
            .keys()
            .filter(|(plural, ..)| plural == "pods")
            .map(|(.., name)| name.clone())
            .filter(|pod| self.elects(pod))
            .collect();
        for pod in &pods {
            let (set, _) = place(pod);
            let file = self.running(pod).unwrap_or_default();
            let group = self.elected.entry(set).or_default();
            if group.members.is_empty() {
                let peers = file["dLegerPeers"].split(';');
                group.members = peers
                    .map(|peer| (peer.split_once('-').unwrap().0.to_owned(), true))
                    .collect();
            }
        }
        let sets: Vec<String> = self.elected.keys().cloned().collect();
        for set in sets {
            let learners: Vec<String> = self.elected[&set]
                .members
                .iter()
                .filter(|(_, votes)| !**votes)
                .map(|(id, _)| id.clone())
                .collect();
            for id in learners {
                let pod = format!("{set}-{}", id.trim_start_matches('n'));
                if self.running(&pod).is_some() && !self.behind.contains_key(&pod) {
                    self.elected.get_mut(&set).unwrap().members.insert(id, true);
                }
            }
            let active = self.active(&set);
            let group = self.elected.get_mut(&set).unwrap();
            let voters = group.members.values().filter(|votes| **votes).count();
            if active.len() == voters {
                group.whole = true;
            }
            let has_quorum = active.len() > voters / 2;
            if group
                .leader
                .as_ref()
                .is_none_or(|leader| !active.contains(leader))
                || !has_quorum
            {
                group.leader = active.first().filter(|_| has_quorum).cloned();
                group.term += 1;
            }
            if group.whole && !has_quorum {
                self.violations.push(format!(
                    "{set}: {} of {voters} members are up and caught up",
                    active.len()
                ));
            }
        }
    }

    fn look_for_violations(&mut self, keep: &BTreeSet<String>) {
        let gone: Vec<String> = self.known.difference(keep).cloned().collect();
        for pod in gone {
            self.known.remove(&pod);
            let (set, ordinal) = place(&pod);
            if let Some(group) = self.elected.get(&set)
                && group.members.contains_key(&format!("n{ordinal}"))
            {
                self.violations
                    .push(format!("{pod} was removed while it was a member"));
            }
            let slaves = keep
                .iter()
                .filter(|p| place(p).0 == set && !p.ends_with("-0"));
            let bare = slaves.count() == 0;
            let master = self.running(&format!("{set}-0")).unwrap_or_default();
            if bare
                && master
                    .get("brokerRole")
                    .is_some_and(|role| role == "SYNC_MASTER")
            {
                self.violations.push(format!(
                    "{pod} was removed while {set}-0 waited for its copies"
                ));
            }
        }
        let ready = |name: &String| self.objects.get(&key("pods", name)).is_some_and(is_ready);
        let now_ready: Vec<String> = keep.iter().filter(|name| ready(name)).cloned().collect();
        let mut away: BTreeMap<String, usize> = BTreeMap::new();
        for pod in self.known.iter().filter(|pod| !now_ready.contains(pod)) {
            let (set, ordinal) = place(pod);
            // Who was let go by its group is no part of it any more.
            let id = format!("n{ordinal}");
            let group = self.elected.get(&set);
            if group.is_none_or(|group| group.members.contains_key(&id)) {
                *away.entry(set).or_default() += 1;
            }
        }
        let most = away.into_values().max().unwrap_or(0);
        self.worst_of_group = self.worst_of_group.max(most);
        self.known.extend(now_ready);
    }

    fn replication(&self, pod: &str) -> Replication {
        let file = self.running(pod).unwrap_or_default();
        let (set, ordinal) = place(pod);
        let lag_of = |pod: &str| {
            let ticks = i64::from(self.behind.get(pod).copied().unwrap_or(0));
            self.lag.get(pod).copied().unwrap_or(0) + (ticks << 30)
        };
        if let Some(group) = self.elected.get(&set) {
            let id = format!("n{ordinal}");
            let active = self.active(&set);
            let peers = group.members.iter().map(|(peer, votes)| Peer {
                id: peer.clone(),
                lag_bytes: lag_of(&format!("{set}-{}", peer.trim_start_matches('n'))),
                voter: *votes,
                active: active.contains(peer),
                sure: true,
            });
            return Replication::Member(Member {
                leads: group.leader.as_ref() == Some(&id),
                id,
                term: group.term,
                peers: peers.collect(),
                ..Member::default()
            });
        }
        const END: i64 = 1 << 40;
        match file.get("brokerRole").map(String::as_str) {
            Some("SLAVE") => Replication::Slave {
                end: END - lag_of(pod),
            },
            Some(_) => {
                let slaves = self.objects.iter().filter(|((plural, _, name), object)| {
                    plural == "pods" && place(name).0 == set && name != pod && is_ready(object)
                });
                Replication::Master {
                    end: END,
                    slaves: slaves
                        .map(|(_, object)| SlaveSeen {
                            ip: object["status"]["podIP"].as_str().unwrap().to_owned(),
                            in_sync: true,
                        })
                        .collect(),
                }
            }
            None => Replication::Unknown,
        }
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Stores what differs, with a new version.
    fn put(&mut self, key: Key, mut object: Value) {
        let before = self.objects.get(&key);
        if let Some(before) = before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if *before == object {
                return;
            }
        }
        object["metadata"]["resourceVersion"] = json!(self.number().to_string());
        self.objects.insert(key, object);
    }

    fn new_pod(&mut self, set: &Value, revision: &str, name: &str) -> Value {
        let number = self.number();
        let mut pod = set["spec"]["template"].clone();
        let config = pod["spec"]["volumes"][0]["configMap"]["name"]
            .as_str()
            .unwrap()
            .to_owned();
        let file = self.objects.get(&key("configmaps", &config)).map(|map| {
            map["data"][format!("{name}.conf")]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        });
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(NAMESPACE);
        pod["metadata"]["uid"] = json!(format!("uid-{number}"));
        pod["metadata"]["labels"]["controller-revision-hash"] = json!(revision);
        pod["metadata"]["annotations"] = json!({"started-with": file});
        pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": set["metadata"]["name"], "uid": set["metadata"]["uid"]}]);
        pod["status"] = json!({"podIP": format!("10.0.{}.{}", number / 250, number % 250)});
        let file = pairs(file.as_deref().unwrap_or_default());
        if file.get("brokerRole").is_some_and(|role| role == "SLAVE")
            || file.contains_key("enableDLegerCommitLog")
        {
            self.behind.insert(name.to_owned(), CATCH_UP_TICKS);
        }
        let mut values: BTreeMap<String, String> = [
            ("fileReservedTime", "72"),
            ("slaveReadEnable", "false"),
            ("traceOn", "true"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        values.extend(file);
        self.values.insert(name.to_owned(), values);
        pod
    }

    fn perform(
        &mut self,
        method: &Method,
        plural: &str,
        name: Option<&str>,
        sub: Option<&str>,
        query: &str,
        body: Value,
    ) -> Response<Body> {
        let Some(name) = name else {
            return if *method == Method::POST {
                self.create(plural, body)
            } else {
                self.list(plural, query)
            };
        };
        let key = key(plural, name);
        if *method != Method::GET {
            self.writes.push(format!(
                "{method} {plural}/{name}{}",
                sub.map(|s| format!("/{s}")).unwrap_or_default()
            ));
        }
        let there = self.objects.get(&key).cloned();
        match (method, there) {
            (&Method::PATCH, Some(mut object)) if !query.contains("force") => {
                merge(&mut object, &body);
                self.put(key.clone(), object);
                respond(200, &self.objects[&key])
            }
            (&Method::PATCH, there) => {
                assert!(
                    query.contains("fieldManager=rocketcluster-operator")
                        && query.contains("force=true"),
                    "{query}"
                );
                self.apply(key, there, sub, body)
            }
            (_, None) => failure(404, "not found"),
            (&Method::GET, Some(object)) => respond(200, &object),
            (&Method::DELETE, Some(object)) => {
                let wanted = &body["preconditions"]["uid"];
                if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
                    return failure(409, "the uid differs");
                }
                self.objects.remove(&key);
                respond(200, &object)
            }
            (&Method::PUT, Some(object)) => {
                if body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                    return failure(409, "the version differs");
                }
                self.put(key.clone(), body);
                respond(200, &self.objects[&key])
            }
            (method, _) => panic!("{method} {plural}/{name}"),
        }
    }

    fn create(&mut self, plural: &str, body: Value) -> Response<Body> {
        let key = key(plural, body["metadata"]["name"].as_str().unwrap());
        self.writes.push(format!("POST {plural}/{}", key.2));
        if self.objects.contains_key(&key) {
            return failure(409, "it exists");
        }
        self.put(key.clone(), body);
        respond(201, &self.objects[&key])
    }

    fn list(&self, plural: &str, query: &str) -> Response<Body> {
        let query: BTreeMap<String, String> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let wanted: Vec<(&str, &str)> = query.get("labelSelector").map_or(Vec::new(), |s| {
            s.split(',')
                .filter_map(|part| part.split_once('='))
                .collect()
        });
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|((p, ..), object)| {
                p == plural
                    && wanted
                        .iter()
                        .all(|(k, v)| object["metadata"]["labels"][k] == *v)
            })
            .map(|(_, object)| object)
            .collect();
        respond(
            200,
            &json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": self.last_number.to_string()}, "items": items}),
        )
    }

    fn apply(
        &mut self,
        key: Key,
        there: Option<Value>,
        sub: Option<&str>,
        body: Value,
    ) -> Response<Body> {
        if sub == Some("status") {
            let Some(mut object) = there else {
                return failure(404, "not found");
            };
            object["status"] = body["status"].clone();
            self.put(key.clone(), object);
            return respond(200, &self.objects[&key]);
        }
        let is_new = there.is_none();
        let mut object = there.unwrap_or_else(|| json!({"metadata": {"generation": 0}}));
        let spec_before = object["spec"].clone();
        if let Some(before) = self.applied.get(&key) {
            drop_fields(&mut object, before, &body);
        }
        let ports_before = object["spec"]["ports"].clone();
        merge(&mut object, &body);
        if let Err(duplicate) = merge_ports(&mut object["spec"], &ports_before) {
            return failure(422, &format!("spec.ports: Duplicate value: {duplicate}"));
        }
        if is_new {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.number()));
            if key.0 == "services" && object["spec"]["clusterIP"].is_null() {
                let number = self.number();
                object["spec"]["clusterIP"] = json!(format!("10.96.0.{}", number % 250));
            }
        }
        if object["spec"] != spec_before || is_new {
            object["metadata"]["generation"] =
                json!(object["metadata"]["generation"].as_i64().unwrap() + 1);
        }
        self.applied.insert(key.clone(), body);
        self.put(key.clone(), object);
        respond(200, &self.objects[&key])
    }
}

/// Ports are a list merged by their number: those that others changed stay beside ours, and a name must not come twice.
fn merge_ports(spec: &mut Value, before: &Value) -> Result<(), String> {
    let (Some(ports), Some(before)) = (spec["ports"].as_array().cloned(), before.as_array()) else {
        return Ok(());
    };
    let mut all = ports.clone();
    all.extend(
        before
            .iter()
            .filter(|old| ports.iter().all(|new| new["port"] != old["port"]))
            .cloned(),
    );
    let mut names = BTreeSet::new();
    if let Some(twice) = all
        .iter()
        .find(|port| !names.insert(port["name"].to_string()))
    {
        return Err(twice["name"].to_string());
    }
    spec["ports"] = Value::Array(all);
    Ok(())
}

/// Removes what a manager applied before and does not any more.
fn drop_fields(object: &mut Value, before: &Value, now: &Value) {
    let (Some(object), Some(before)) = (object.as_object_mut(), before.as_object()) else {
        return;
    };
    for (field, old) in before {
        match now.get(field) {
            None => {
                object.remove(field);
            }
            Some(new) => {
                if let Some(inner) = object.get_mut(field) {
                    drop_fields(inner, old, new);
                }
            }
        }
    }
}

fn merge(object: &mut Value, patch: &Value) {
    match (object.as_object_mut(), patch.as_object()) {
        (Some(object), Some(patch)) => {
            for (field, value) in patch {
                merge(object.entry(field).or_insert(Value::Null), value);
            }
        }
        _ => *object = patch.clone(),
    }
}

fn respond(code: u16, body: &Value) -> Response<Body> {
    let body = serde_json::to_vec(body).unwrap();
    Response::builder()
        .status(StatusCode::from_u16(code).unwrap())
        .body(Body::from(body))
        .unwrap()
}

fn failure(code: u16, message: &str) -> Response<Body> {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    respond(
        code,
        &json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}),
    )
}

impl Inspect for Fake {
    fn inspect(&self, request: inspect::Request) -> BoxFuture<'_, BTreeMap<String, ServerReport>> {
        let state = self.state();
        let targets = request
            .name_servers
            .into_iter()
            .map(|t| (t.pod, true))
            .chain(request.brokers.into_iter().map(|t| {
                let known = t.registered_address.is_some() && !state.unregistered.contains(&t.pod);
                (t.pod, known)
            }));
        let reports = targets
            .filter_map(|(name, registered)| {
                state.running(&name)?;
                let pod = state.objects.get(&key("pods", &name))?;
                let file = pod["metadata"]["annotations"]["started-with"].as_str()?;
                Some((
                    name.clone(),
                    ServerReport {
                        config_hash: Some(config_hash(file.as_bytes())),
                        version: Some("V4_9_8".to_owned()),
                        registered: registered && is_ready(pod),
                        values: state.values.get(&name).cloned().unwrap_or_default(),
                        replication: state.replication(&name),
                        ..ServerReport::default()
                    },
                ))
            })
            .collect();
        Box::pin(std::future::ready(reports))
    }

    fn configure<'a>(
        &'a self,
        broker: &'a str,
        changes: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<(), String>> {
        let mut state = self.state();
        let pod = state.pod_at(broker);
        let answer = match state.refuses.clone() {
            Some(said) => Err(said),
            None => {
                state.values.entry(pod).or_default().extend(changes.clone());
                Ok(())
            }
        };
        Box::pin(std::future::ready(answer))
    }

    fn change_members<'a>(
        &'a self,
        leader: &'a str,
        change: &'a MemberChange,
    ) -> BoxFuture<'a, Result<(), String>> {
        let mut state = self.state();
        // A call to a broker is like a write: the process may die before it, or after it took effect.
        state.calls += 1;
        let call = state.calls;
        let crash = state.crash.filter(|(at, _)| *at == call);
        state.crashed |= crash.is_some();
        let mut answer = Ok(());
        if crash.is_none_or(|(_, crash)| crash == Crash::After) {
            answer = state.change_members(leader, change);
        }
        if crash.is_some() {
            answer = Err("the process died".to_owned());
        }
        Box::pin(std::future::ready(answer))
    }
}

impl State {
    fn pod_at(&self, address: &str) -> String {
        let ip = address.rsplit_once(':').unwrap().0;
        let found = self
            .objects
            .iter()
            .find(|((plural, ..), object)| plural == "pods" && object["status"]["podIP"] == ip);
        found.unwrap().0.2.clone()
    }

    fn change_members(&mut self, leader: &str, change: &MemberChange) -> Result<(), String> {
        let (set, ordinal) = place(&self.pod_at(leader));
        let active = self.active(&set);
        let group = self.elected.get_mut(&set).unwrap();
        if group.leader != Some(format!("n{ordinal}")) {
            return Err("this is not the leader".to_owned());
        }
        let learns = group.members.values().any(|votes| !votes);
        match change {
            MemberChange::Transfer { to } => {
                if !active.contains(to) {
                    return Err(format!("{to} has not caught up"));
                }
                group.leader = Some(to.clone());
                group.term += 1;
            }
            MemberChange::Add { id, address } => {
                let pod = format!("{set}-{}", id.trim_start_matches('n'));
                assert!(
                    address.starts_with(&format!("{pod}.{set}.{NAMESPACE}.svc:")),
                    "{address}"
                );
                if learns {
                    self.violations.push(format!("{set}: two changes at once"));
                }
                group.members.entry(id.clone()).or_insert(false);
                self.behind.insert(pod, CATCH_UP_TICKS);
            }
            MemberChange::Remove { id } => {
                if group.leader.as_ref() == Some(id) {
                    return Err("the leader does not let itself go".to_owned());
                }
                group.members.remove(id);
            }
        }
        Ok(())
    }
}
