//! A Kubernetes small enough to hold in the head: objects in a map, server-side apply, preconditions, and one function, [`Fake::tick`], that does what
//! the StatefulSet controller, the kubelet and the servers in the pods would do next. Time passes only by `tick`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use operator_core::build::config_hash;
use operator_core::plan::ServerReport;
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
}

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
                            pod["status"]["conditions"] =
                                json!([{"type": "Ready", "status": "True"}]);
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

impl State {
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
        pod["status"] = json!({"podIP": format!("10.0.0.{}", number % 250)});
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
                let pod = state
                    .objects
                    .get(&key("pods", &name))
                    .filter(|pod| is_ready(pod))?;
                let file = pod["metadata"]["annotations"]["started-with"].as_str()?;
                Some((
                    name,
                    ServerReport {
                        config_hash: Some(config_hash(file.as_bytes())),
                        version: Some("V4_9_8".to_owned()),
                        registered,
                    },
                ))
            })
            .collect();
        Box::pin(std::future::ready(reports))
    }
}
