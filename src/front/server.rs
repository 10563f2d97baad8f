//! An API server in memory, for tests. It stores what it is given, tells watches of it, and proves nothing about a real one:
//! there is no schema, no admission, and server-side apply is a merge.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::stream;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use kube::{Client, Resource, client::Body};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tower::Service;

/// A request that has reached the API server.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Request {
    /// Its method, such as `PATCH`.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// Its body; null if it has none.
    pub body: Value,
}

impl Request {
    /// Whether it may change something.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !["GET", "HEAD", "OPTIONS"].contains(&self.method.as_str())
    }
}

/// An API server in memory. Clones are handles on the same one.
///
/// It lists, watches, gets, creates, replaces, patches and deletes objects of any type, and keeps resourceVersions, uids, generations,
/// finalizers and status subresources. It has no schemas, no defaults and no admission; server-side apply merges.
#[derive(Clone, Default)]
pub struct Server {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
    answers: Mutex<Option<Arc<Answers>>>,
}

/// An answer, or a watch that goes on.
type Answered = UnsyncBoxBody<Bytes, Infallible>;

type Answers = dyn Fn(&Request) -> Option<(u16, Value)> + Send + Sync;

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// What watches tell, in the order of versions.
    events: Vec<(u64, Key, &'static str, Value)>,
    requests: Vec<Request>,
    /// Kinds by their collections, for discovery.
    kinds: BTreeMap<Collection, (String, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Collection {
    /// `<group>/<version>`, or `v1`.
    api_version: String,
    plural: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    of: Collection,
    namespace: Option<String>,
    name: String,
}

/// What a path is about.
struct Path {
    of: Collection,
    namespace: Option<String>,
    name: Option<String>,
    part: Option<String>,
}

enum Answer {
    Json(u16, Value),
    /// Events of a collection after that version.
    Watch(Box<Path>, BTreeMap<String, String>, u64),
}

impl Server {
    /// An API server without objects.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores an object, as a person would.
    ///
    /// # Panics
    /// If it cannot be written as JSON, or has no name.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test says what is wrong with it by panicking")]
    pub fn with<K: Resource<DynamicType = ()> + Serialize>(self, object: &K) -> Self {
        let mut value = serde_json::to_value(object).expect("the object can be written as JSON");
        value["apiVersion"] = K::api_version(&()).into();
        value["kind"] = K::kind(&()).into();
        let of = Self::collection::<K>();
        let name = object.meta().name.clone().expect("the object has a name");
        let key = Key { of, namespace: object.meta().namespace.clone(), name };
        self.state().store(key, value, false);
        self
    }

    /// Answers requests by this function, where it has an answer: a status code and a body. For failures of the API server.
    #[must_use]
    pub fn answering(self, answers: impl Fn(&Request) -> Option<(u16, Value)> + Send + Sync + 'static) -> Self {
        *self.inner.answers.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(answers));
        self
    }

    /// An object as it is stored; `None` if there is none, or it is not of that type.
    #[must_use]
    pub fn get<K: Resource<DynamicType = ()> + DeserializeOwned>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Option<K> {
        let key = Key { of: Self::collection::<K>(), namespace: namespace.map(str::to_owned), name: name.to_owned() };
        serde_json::from_value(self.state().objects.get(&key)?.clone()).ok()
    }

    /// Every request that has come, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// A client that is behind no fence, as another program has. A reconciler that is given one and writes through it writes
    /// past its term.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.service(), "default")
    }

    /// What clients send their requests to.
    pub(crate) fn service(
        &self,
    ) -> impl Service<http::Request<Body>, Response = Response<Answered>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static {
        let server = self.clone();
        tower::service_fn(move |request: http::Request<Body>| {
            let server = server.clone();
            async move { Ok(server.answer(request).await) }
        })
    }

    fn collection<K: Resource<DynamicType = ()>>() -> Collection {
        Collection { api_version: K::api_version(&()).into_owned(), plural: K::plural(&()).into_owned() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: http::Request<Body>) -> Response<Answered> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap_or_default();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let is_json_patch =
            head.headers.get(http::header::CONTENT_TYPE).is_some_and(|it| it == "application/json-patch+json");
        let is_apply =
            head.headers.get(http::header::CONTENT_TYPE).is_some_and(|it| it == "application/apply-patch+yaml");
        let asked = Request {
            method: head.method.as_str().to_owned(),
            path,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        self.state().requests.push(asked.clone());
        let answers = self.inner.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let said = answers.and_then(|answers| answers(&asked)).map(|(code, body)| Answer::Json(code, body));
        let answer = said.unwrap_or_else(|| {
            let query = query(head.uri.query().unwrap_or_default());
            self.state().answer(&head.method, head.uri.path(), &query, &asked.body, is_json_patch, is_apply)
        });
        self.inner.changed.notify_waiters();
        let (code, body) = match answer {
            Answer::Json(code, body) => (code, Full::new(Bytes::from(body.to_string())).boxed_unsync()),
            Answer::Watch(path, query, after) => (200, self.watch(*path, query, after)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
    }

    /// Tells of what is stored after a version, for as long as somebody listens.
    fn watch(&self, path: Path, query: BTreeMap<String, String>, after: u64) -> Answered {
        let events = stream::unfold((self.clone(), path, query, after), |(server, path, query, after)| async move {
            let (version, line) = loop {
                let mut changed = std::pin::pin!(server.inner.changed.notified());
                changed.as_mut().enable();
                if let Some(next) = server.state().next(&path, &query, after) {
                    break next;
                }
                changed.await;
            };
            let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(line)));
            Some((frame, (server, path, query, version)))
        });
        StreamBody::new(events).boxed_unsync()
    }
}

impl State {
    fn answer(
        &mut self,
        method: &Method,
        path: &str,
        query: &BTreeMap<String, String>,
        body: &Value,
        is_json_patch: bool,
        is_apply: bool,
    ) -> Answer {
        let Some(path) = Path::parse(path) else { return self.discover(path) };
        let Path { of, namespace, name, part } = &path;
        let is_status = part.as_deref() == Some("status");
        let is_dry = query.contains_key("dryRun");
        let Some(name) = name else {
            return match *method {
                Method::GET if query.get("watch").is_some_and(|it| it == "true" || it == "1") => {
                    let after = query.get("resourceVersion").and_then(|it| it.parse().ok()).unwrap_or(self.version);
                    Answer::Watch(Box::new(path), query.clone(), after)
                }
                Method::GET => {
                    let items: Vec<_> = self.matching(&path, query).map(|(_, object)| object.clone()).collect();
                    let metadata = json!({"resourceVersion": self.version.to_string()});
                    let list =
                        json!({"apiVersion": of.api_version, "kind": "List", "metadata": metadata, "items": items});
                    Answer::Json(200, list)
                }
                Method::POST => self.create(of, namespace.as_ref(), body, is_dry),
                Method::DELETE => {
                    let keys: Vec<_> = self.matching(&path, query).map(|(key, _)| key.clone()).collect();
                    keys.iter().for_each(|key| drop(self.delete(key, &Value::Null)));
                    Answer::Json(
                        200,
                        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
                    )
                }
                _ => refusal(405, "MethodNotAllowed", "no such method"),
            };
        };
        let key = Key { of: of.clone(), namespace: namespace.clone(), name: name.clone() };
        let there = self.objects.get(&key).cloned();
        match (method, there) {
            (&Method::GET, Some(there)) => Answer::Json(200, there),
            (&Method::PATCH, None) if is_apply && !is_status => {
                let mut object = body.clone();
                object["metadata"]["name"] = name.clone().into();
                self.create(of, namespace.as_ref(), &object, is_dry)
            }
            (_, None) => refusal(404, "NotFound", &format!("{} {name:?} not found", of.plural)),
            (&Method::PUT, Some(there)) => self.replace(key, &there, body.clone(), is_status, is_dry),
            (&Method::PATCH, Some(there)) => {
                let mut patched = there.clone();
                if is_json_patch {
                    let patch = serde_json::from_value::<json_patch::Patch>(body.clone());
                    if let Err(why) = patch
                        .map_err(|why| why.to_string())
                        .and_then(|patch| json_patch::patch(&mut patched, &patch).map_err(|why| why.to_string()))
                    {
                        return refusal(422, "Invalid", &why);
                    }
                } else {
                    json_patch::merge(&mut patched, body);
                }
                // A patch is of the object as it is, unless it says of which.
                if body.pointer("/metadata/resourceVersion").is_none() && !is_json_patch {
                    patched["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"].clone();
                }
                self.replace(key, &there, patched, is_status, is_dry)
            }
            (&Method::DELETE, Some(there)) if is_dry => Answer::Json(200, there),
            (&Method::DELETE, Some(_)) => self.delete(&key, body),
            _ => refusal(405, "MethodNotAllowed", "no such method"),
        }
    }

    /// Which types of a version there are.
    fn discover(&self, path: &str) -> Answer {
        let version = path.trim_start_matches("/apis/").trim_start_matches("/api/");
        let kinds = self.kinds.iter().filter(|(of, _)| of.api_version == version);
        let resource = |(of, (kind, namespaced)): (&Collection, &(String, bool))| {
            let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
            json!({"name": of.plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": verbs})
        };
        let resources: Vec<_> = kinds.map(resource).collect();
        if resources.is_empty() {
            return refusal(404, "NotFound", "the server could not find the requested resource");
        }
        let list =
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources});
        Answer::Json(200, list)
    }

    fn matching<'a>(
        &'a self,
        path: &'a Path,
        query: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = (&'a Key, &'a Value)> {
        self.objects.iter().filter(|(key, object)| path.has(key, object, query))
    }

    fn create(&mut self, of: &Collection, namespace: Option<&String>, body: &Value, is_dry: bool) -> Answer {
        let text = |path: &str| body.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let generated = text("/metadata/generateName").map(|prefix| format!("{prefix}{:05}", self.version + 1));
        let Some(name) = text("/metadata/name").or(generated) else {
            return refusal(422, "Invalid", "metadata.name: Required value");
        };
        let key = Key { of: of.clone(), namespace: namespace.cloned(), name };
        if self.objects.contains_key(&key) {
            return refusal(409, "AlreadyExists", &format!("{} {:?} already exists", of.plural, key.name));
        }
        Answer::Json(201, self.store(key, body.clone(), is_dry))
    }

    /// Stores a new object, and gives it what the API server gives.
    fn store(&mut self, key: Key, mut object: Value, is_dry: bool) -> Value {
        let version = self.version + 1;
        let metadata = &mut object["metadata"];
        metadata["name"] = key.name.clone().into();
        if let Some(namespace) = &key.namespace {
            metadata["namespace"] = namespace.clone().into();
        }
        if metadata.get("uid").is_none_or(Value::is_null) {
            metadata["uid"] = format!("00000000-0000-4000-8000-{version:012}").into();
        }
        metadata["generation"] = 1.into();
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        metadata["resourceVersion"] = version.to_string().into();
        if !is_dry {
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            self.kinds.entry(key.of.clone()).or_insert((kind, key.namespace.is_some()));
            self.put(key, "ADDED", object.clone());
        }
        object
    }

    fn replace(&mut self, key: Key, there: &Value, mut object: Value, is_status: bool, is_dry: bool) -> Answer {
        let version =
            |object: &Value| object.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned);
        if version(&object).is_some_and(|of| Some(of) != version(there)) {
            return refusal(
                409,
                "Conflict",
                "the object has been modified; please apply your changes to the latest version",
            );
        }
        // A status has a path of its own, and only that path changes it.
        let (from, to) = if is_status { (object, there.clone()) } else { (there.clone(), object) };
        object = to;
        match from.get("status") {
            Some(status) => object["status"] = status.clone(),
            None => drop(object.as_object_mut().and_then(|fields| fields.remove("status"))),
        }
        for field in
            ["uid", "name", "namespace", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp"]
        {
            match there["metadata"].get(field) {
                Some(value) => object["metadata"][field] = value.clone(),
                None => drop(object["metadata"].as_object_mut().and_then(|metadata| metadata.remove(field))),
            }
        }
        for field in ["apiVersion", "kind"] {
            object[field] = there[field].clone();
        }
        if object == *there || is_dry {
            return Answer::Json(200, object);
        }
        if object.get("spec") != there.get("spec") {
            object["metadata"]["generation"] =
                (there["metadata"]["generation"].as_i64().unwrap_or_default() + 1).into();
        }
        let is_going = object["metadata"].get("deletionTimestamp").is_some();
        object["metadata"]["resourceVersion"] = (self.version + 1).to_string().into();
        if is_going && !is_held(&object) {
            self.objects.remove(&key);
            self.tell(key, "DELETED", object.clone());
        } else {
            self.put(key, "MODIFIED", object.clone());
        }
        Answer::Json(200, object)
    }

    fn delete(&mut self, key: &Key, body: &Value) -> Answer {
        let Some(mut object) = self.objects.get(key).cloned() else { return refusal(404, "NotFound", "not found") };
        let wanted = body.pointer("/preconditions/uid").and_then(Value::as_str);
        if wanted.is_some_and(|uid| object["metadata"]["uid"] != uid) {
            return refusal(409, "Conflict", "the uid in the precondition is not that of the object");
        }
        object["metadata"]["resourceVersion"] = (self.version + 1).to_string().into();
        if is_held(&object) {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            self.put(key.clone(), "MODIFIED", object.clone());
        } else {
            self.objects.remove(key);
            self.tell(key.clone(), "DELETED", object.clone());
        }
        Answer::Json(200, object)
    }

    fn put(&mut self, key: Key, what: &'static str, object: Value) {
        self.objects.insert(key.clone(), object.clone());
        self.tell(key, what, object);
    }

    fn tell(&mut self, key: Key, what: &'static str, object: Value) {
        self.version += 1;
        self.events.push((self.version, key, what, object));
    }

    /// The next event of a collection after a version, as a line.
    fn next(&self, path: &Path, query: &BTreeMap<String, String>, after: u64) -> Option<(u64, String)> {
        let is_next = |(version, key, _, object): &&(u64, Key, &'static str, Value)| {
            *version > after && path.has(key, object, query)
        };
        let (version, _, what, object) = self.events.iter().find(is_next)?;
        Some((*version, format!("{}\n", json!({"type": what, "object": object}))))
    }
}

impl Path {
    /// `None` for what is about no object.
    fn parse(path: &str) -> Option<Self> {
        let segments: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let (api_version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let owned = |text: Option<&&str>| text.map(|text| (*text).to_owned());
        let (namespace, rest) = match rest {
            // Parts of a Namespace itself.
            ["namespaces", _, "status" | "finalize"] => (None, rest),
            ["namespaces", namespace, of @ ..] if !of.is_empty() => (Some((*namespace).to_owned()), of),
            rest => (None, rest),
        };
        let plural = owned(rest.first())?;
        let of = Collection { api_version, plural };
        Some(Self { of, namespace, name: owned(rest.get(1)), part: owned(rest.get(2)) })
    }

    fn has(&self, key: &Key, object: &Value, query: &BTreeMap<String, String>) -> bool {
        let labels = query.get("labelSelector").map_or("", String::as_str);
        let has_label = |selector: &str| {
            let (label, value) =
                selector.split_once('=').map_or((selector, None), |(label, value)| (label, Some(value)));
            let borne = object["metadata"]["labels"].get(label).and_then(Value::as_str);
            borne.is_some_and(|borne| value.is_none_or(|value| value.trim_start_matches('=') == borne))
        };
        let fields = query.get("fieldSelector").map_or("", String::as_str);
        let has_field = |selector: &str| match selector.split_once('=') {
            Some(("metadata.name", name)) => key.name == name.trim_start_matches('='),
            Some(("metadata.namespace", namespace)) => {
                key.namespace.as_deref() == Some(namespace.trim_start_matches('='))
            }
            _ => false,
        };
        key.of == self.of
            && (self.namespace.is_none() || key.namespace == self.namespace)
            && labels.split(',').filter(|it| !it.is_empty()).all(has_label)
            && fields.split(',').filter(|it| !it.is_empty()).all(has_field)
    }
}

fn is_held(object: &Value) -> bool {
    object.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|all| !all.is_empty())
}

fn refusal(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    Answer::Json(code, status)
}

/// The parameters of a query. Of their escapes those that kube writes.
fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(name, value)| (unescaped(name), unescaped(value))).collect()
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = match after {
            [high, low, ..] if *first == b'%' => {
                std::str::from_utf8(&[*high, *low]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok())
            }
            _ => None,
        };
        bytes.push(hex.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if hex.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::StreamExt as _;
    use k8s_openapi::api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace},
    };
    use kube::{
        Api, Error, ResourceExt,
        api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    };

    use super::*;

    fn config_map(name: &str, label: &str) -> ConfigMap {
        let labels = Some(BTreeMap::from([("a".to_owned(), label.to_owned())]));
        ConfigMap {
            metadata: ObjectMeta { name: Some(name.to_owned()), labels, ..Default::default() },
            ..Default::default()
        }
    }

    fn code(error: &Error) -> u16 {
        let Error::Api(status) = error else { panic!("{error}") };
        status.code
    }

    #[tokio::test]
    async fn it_stores_what_it_is_given_and_refuses_what_a_real_one_would() {
        let server = Server::new();
        let api: Api<ConfigMap> = Api::namespaced(server.client(), "ns");
        let made = api.create(&PostParams::default(), &config_map("x", "1")).await.unwrap();
        assert_eq!((made.namespace().as_deref(), made.uid().is_some()), (Some("ns"), true));
        assert_eq!(code(&api.create(&PostParams::default(), &config_map("x", "1")).await.unwrap_err()), 409);
        assert_eq!(code(&api.get("y").await.unwrap_err()), 404);
        let patch = Patch::Merge(json!({"data": {"k": "v"}}));
        let patched = api.patch("x", &PatchParams::default(), &patch).await.unwrap();
        assert_ne!(patched.resource_version(), made.resource_version());
        assert_eq!(code(&api.replace("x", &PostParams::default(), &made).await.unwrap_err()), 409, "a stale version");
        api.patch("x", &PatchParams::default(), &patch).await.unwrap();
        assert_eq!(api.get("x").await.unwrap().resource_version(), patched.resource_version(), "nothing has changed");
        let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "y", "labels": {"a": "2"}}});
        api.patch("y", &PatchParams::apply("test"), &Patch::Apply(applied)).await.unwrap();
        let of = async |selector: &str| {
            let params = ListParams::default().labels(selector);
            api.list(&params).await.unwrap().items.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
        };
        assert_eq!((of("a").await, of("a=2").await), (vec!["x".to_owned(), "y".to_owned()], vec!["y".to_owned()]));
        let steps = json!([{"op": "replace", "path": "/data/k", "value": "w"}]);
        let steps: json_patch::Patch = serde_json::from_value(steps).unwrap();
        assert_eq!(
            api.patch("x", &PatchParams::default(), &Patch::<()>::Json(steps)).await.unwrap().data.unwrap()["k"],
            "w"
        );
        api.delete("x", &DeleteParams::default()).await.unwrap();
        assert!(server.get::<ConfigMap>(Some("ns"), "x").is_none());
        assert!(server.requests().iter().filter(|it| it.is_write()).count() > 5);
    }

    #[tokio::test]
    async fn a_status_and_finalizers_have_their_own_ways() {
        let namespace =
            Namespace { metadata: ObjectMeta { name: Some("n".into()), ..Default::default() }, ..Default::default() };
        let server = Server::new().with(&namespace);
        let namespaces: Api<Namespace> = Api::all(server.client());
        let status = Patch::Merge(json!({"status": {"phase": "Active"}, "metadata": {"labels": {"a": "b"}}}));
        namespaces.patch_status("n", &PatchParams::default(), &status).await.unwrap();
        let read = namespaces.get("n").await.unwrap();
        assert_eq!((read.status.unwrap().phase.as_deref(), read.metadata.labels), (Some("Active"), None));
        let whole = Patch::Merge(json!({"status": {"phase": "Other"}, "metadata": {"finalizers": ["a/b"]}}));
        let read = namespaces.patch("n", &PatchParams::default(), &whole).await.unwrap();
        assert_eq!(read.status.unwrap().phase.as_deref(), Some("Active"));
        namespaces.delete("n", &DeleteParams::default()).await.unwrap();
        assert!(namespaces.get("n").await.unwrap().metadata.deletion_timestamp.is_some());
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        namespaces.patch("n", &PatchParams::default(), &free).await.unwrap();
        assert_eq!(code(&namespaces.get("n").await.unwrap_err()), 404);
    }

    #[tokio::test]
    async fn a_watch_tells_of_every_change_after_its_version() {
        let server = Server::new();
        let api: Api<ConfigMap> = Api::namespaced(server.client(), "ns");
        let first = api.create(&PostParams::default(), &config_map("x", "1")).await.unwrap();
        let mut events = pin!(api.watch(&WatchParams::default(), "0").await.unwrap());
        let elsewhere: Api<ConfigMap> = Api::namespaced(server.client(), "other");
        elsewhere.create(&PostParams::default(), &config_map("x", "1")).await.unwrap();
        api.delete("x", &DeleteParams::default()).await.unwrap();
        let Some(Ok(WatchEvent::Added(added))) = events.next().await else { panic!("it was added") };
        assert_eq!(added.uid(), first.uid());
        let Some(Ok(WatchEvent::Deleted(gone))) = events.next().await else { panic!("it was deleted") };
        assert_eq!(gone.uid(), first.uid());
    }

    #[tokio::test]
    async fn it_is_told_what_to_refuse_and_says_which_types_it_has() {
        let server = Server::new().with(&Deployment {
            metadata: ObjectMeta { name: Some("x".into()), namespace: Some("ns".into()), ..Default::default() },
            ..Default::default()
        });
        let gvk = kube::core::GroupVersionKind::gvk("apps", "v1", "Deployment");
        let (resource, _) = kube::discovery::pinned_kind(&server.client(), &gvk).await.unwrap();
        assert_eq!(resource.plural, "deployments");
        let server = server.answering(|asked| {
            asked.is_write().then(|| (500, json!({"code": 500, "message": "no", "reason": "x", "status": "Failure"})))
        });
        let api: Api<ConfigMap> = Api::namespaced(server.client(), "ns");
        assert_eq!(code(&api.create(&PostParams::default(), &config_map("x", "1")).await.unwrap_err()), 500);
        assert!(api.list(&ListParams::default()).await.unwrap().items.is_empty());
    }

    #[test]
    fn a_query_is_read_as_kube_writes_it() {
        let read = query("labelSelector=a%3Db%2Cc&watch=true&x");
        assert_eq!(read["labelSelector"], "a=b,c");
        assert_eq!((read["watch"].as_str(), read["x"].as_str()), ("true", ""));
    }
}
