//! The engine over generated interleavings: an API server as a value, leaders that follow each other, each with a view of the
//! parent, the children and what is related that lags by itself; edits, meddling, refusals. What decides is the product's own:
//! [`Plan`] and [`Store`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::{core::ApiResource, runtime::watcher::Event};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    Composed, Desired, Key, Order, Type,
    fights::{CONTESTED, Fights},
    order::Going,
    parent::Parent,
    plan::{Cached, How, Owner, Plan, Step, Write, meta},
};
use crate::{
    protocol::moment::Moment,
    reconcile::{
        apply::{LEASEHOLD, MANAGED_BY, OWNER_UID, SHARD},
        name::Name,
        stages::{Outcome, Trouble},
        store::Store,
    },
};

const MANAGER: &str = "leasehold/widget";

/// What happens next.
#[derive(Clone, Debug)]
enum Happens {
    /// The spec changes: these children, with this value.
    Edit(BTreeSet<u8>, u8),
    /// What is related changes.
    Relate(u8),
    /// Another writer changes a child, or deletes it.
    Meddle(u8, bool),
    /// The leader hears of the next change of the parent, of a child, of what is related.
    HearParent,
    HearChildren,
    HearRelated,
    /// The leader takes its next step; a bit for each write says whether it is refused.
    Step(u8),
    /// Another one leads, whose views are behind by so much.
    Succeed(usize, usize, usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        2 => (prop::collection::btree_set(0_u8..4, 0..4), 0_u8..3).prop_map(|(names, value)| Happens::Edit(names, value)),
        1 => (0_u8..3).prop_map(Happens::Relate),
        1 => (0_u8..4, any::<bool>()).prop_map(|(name, deletes)| Happens::Meddle(name, deletes)),
        3 => Just(Happens::HearParent),
        3 => Just(Happens::HearChildren),
        1 => Just(Happens::HearRelated),
        12 => prop_oneof![4 => Just(0_u8), 1 => any::<u8>()].prop_map(Happens::Step),
        2 => (0_usize..6, 0_usize..6, 0_usize..3).prop_map(|(parent, children, related)| Happens::Succeed(parent, children, related)),
    ]
}

type Children = BTreeMap<String, Arc<Value>>;

/// What is stored, and all that was.
struct Server {
    version: u64,
    parents: Vec<Value>,
    children: Vec<Children>,
    related: Vec<u8>,
    /// The newest generation that anything was written from.
    applied: i64,
}

impl Server {
    fn new() -> Self {
        let mut server =
            Self { version: 0, parents: vec![], children: vec![Children::new()], related: vec![0], applied: 0 };
        server.edit(&BTreeSet::new(), 0);
        server
    }

    fn edit(&mut self, names: &BTreeSet<u8>, value: u8) {
        self.version += 1;
        let (version, generation) = (self.version.to_string(), self.parents.len() + 1);
        let metadata =
            json!({"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": version, "generation": generation});
        self.parents.push(json!({"metadata": metadata, "spec": {"names": names, "value": value}}));
    }

    fn parent(&self) -> &Value {
        self.parents.last().unwrap()
    }

    fn now(&self) -> &Children {
        self.children.last().unwrap()
    }

    fn change(&mut self, change: impl FnOnce(&mut Children)) {
        let mut next = self.now().clone();
        change(&mut next);
        self.children.push(next);
    }

    fn store(&mut self, name: &str, mut object: Value, uid: Option<&str>, managers: Value) -> Arc<Value> {
        self.version += 1;
        let uid = uid.map_or_else(|| format!("uid-{}", self.version), str::to_owned);
        object["metadata"]["uid"] = json!(uid);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        object["metadata"]["managedFields"] = managers;
        let object = Arc::new(object);
        self.change(|all| _ = all.insert(name.to_owned(), Arc::clone(&object)));
        object
    }

    /// Another writer changes a child, which takes the field from us, or deletes it.
    fn meddle(&mut self, name: &str, deletes: bool) {
        let Some(child) = self.now().get(name).cloned() else { return };
        if deletes {
            return self.change(|all| _ = all.remove(name));
        }
        let mut object = Value::clone(&child);
        object["data"]["value"] = json!("meddled");
        let mut managers = object["metadata"]["managedFields"].clone();
        for entry in managers.as_array_mut().unwrap() {
            entry["fieldsV1"]["f:data"].as_object_mut().unwrap().remove("f:value");
        }
        let uid = object["metadata"]["uid"].as_str().unwrap().to_owned();
        self.store(name, object, Some(&uid), managers);
    }
}

/// The leader: what it has seen, and the pass that it is in.
struct Leader {
    store: Store<Parent>,
    parent: usize,
    children: usize,
    related: usize,
    /// What its own writes have left.
    noted: HashMap<String, Arc<Value>>,
    pass: Option<(Plan, Look)>,
    fights: Arc<Mutex<Fights>>,
    now: Moment,
    /// What its last pass said of contested children.
    contested: String,
}

/// What a pass looks at that does not change meanwhile.
#[derive(Clone)]
struct Look {
    parent: Value,
    related: u8,
    is_current: bool,
    children: Children,
}

fn of() -> Arc<Type> {
    Arc::new(Type::new("", "v1", "ConfigMap"))
}

fn key(name: &str) -> Key {
    Key { of: of(), namespace: Some("ns".to_owned()), name: name.to_owned() }
}

/// What the children shall be.
fn desired(parent: &Value, related: u8) -> BTreeMap<String, Value> {
    let value = &parent["spec"]["value"];
    let mut data = json!({"value": format!("{value}-{related}"), "same": "same"});
    // A field that comes and goes.
    if value.as_u64().is_some_and(|value| value % 2 == 0) {
        data["even"] = json!("yes");
    }
    let names = parent["spec"]["names"].as_array().into_iter().flatten();
    names.map(|name| (format!("child-{name}"), data.clone())).collect()
}

/// An entry of `managedFields` of ours.
fn entry(operation: &str, data: &BTreeSet<String>) -> Value {
    let fields: serde_json::Map<_, _> = data.iter().map(|key| (format!("f:{key}"), json!({}))).collect();
    json!({"manager": MANAGER, "operation": operation, "fieldsV1": {"f:metadata": {}, "f:data": fields}})
}

/// The keys of `data` that we own by that operation.
fn owned(live: &Value, operation: &str) -> BTreeSet<String> {
    let entries = live["metadata"]["managedFields"].as_array().into_iter().flatten();
    let ours = entries.filter(|entry| entry["manager"] == MANAGER && entry["operation"] == operation);
    let fields = ours.filter_map(|entry| entry["fieldsV1"]["f:data"].as_object()).flat_map(|fields| fields.keys());
    fields.filter_map(|key| key.strip_prefix("f:")).map(str::to_owned).collect()
}

/// What the API server makes of an apply of ours: the data, and who owns what of it.
fn applied(live: &Value, object: &Value, created_is_applied: bool) -> (Value, Value) {
    let (mut created, mut before) = (owned(live, "Update"), owned(live, "Apply"));
    if created_is_applied {
        before.append(&mut created);
    }
    let wanted = object["data"].as_object().unwrap();
    let mut data = live["data"].as_object().unwrap().clone();
    data.retain(|key, _| wanted.contains_key(key) || !before.contains(key) || created.contains(key));
    for (key, value) in wanted {
        if data.insert(key.clone(), value.clone()).as_ref() != Some(value) {
            created.remove(key);
        }
    }
    let mut managers = vec![entry("Apply", &wanted.keys().cloned().collect())];
    if !created_is_applied
        && live["metadata"]["managedFields"].as_array().unwrap().iter().any(|it| it["operation"] == "Update")
    {
        managers.push(entry("Update", &created));
    }
    (Value::Object(data), json!(managers))
}

impl Look {
    fn composed(&self) -> Composed {
        let child = |(name, data): (String, Value)| {
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "ns"}, "data": data});
            Desired::new("child", key(&name), object)
        };
        let children = desired(&self.parent, self.related).into_iter().map(child).collect();
        Composed { children, ..Composed::default() }
    }
}

impl Cached for Look {
    fn child(&self, key: &Key) -> Option<Arc<Value>> {
        self.children.get(&key.name).cloned()
    }

    fn children(&self) -> Vec<Key> {
        self.children.keys().map(|name| key(name)).collect()
    }

    fn is_current(&self) -> bool {
        self.is_current
    }

    fn unserved(&self, _: &Type) -> Option<Trouble> {
        None
    }
}

fn version(child: &Value) -> u64 {
    child["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn parent(stored: &Value) -> Parent {
    serde_json::from_value(stored.clone()).unwrap()
}

impl Leader {
    /// It has listed everything before, and its views are behind by so much.
    fn new(server: &Server, behind: (usize, usize, usize)) -> Self {
        let at = |all: usize, behind: usize| (all - 1).saturating_sub(behind);
        let this = Self {
            store: Store::new(ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("example.com", "v1", "Widget"))),
            parent: at(server.parents.len(), behind.0),
            children: at(server.children.len(), behind.1),
            related: at(server.related.len(), behind.2),
            noted: HashMap::new(),
            pass: None,
            fights: Arc::default(),
            now: Moment::after_origin(Duration::from_secs(3600)),
            contested: String::new(),
        };
        for event in [Event::Init, Event::InitApply(parent(&server.parents[this.parent])), Event::InitDone] {
            this.store.take_in(event);
        }
        this.store.begin();
        this
    }

    fn hear_parent(&mut self, server: &Server) {
        if self.parent + 1 < server.parents.len() {
            self.parent += 1;
            self.store.take_in(Event::Apply(parent(&server.parents[self.parent])));
        }
    }

    fn known(&self) -> Arc<Parent> {
        self.store.get(&Name::new(Some("ns"), "p")).unwrap()
    }

    /// The children as they were last heard of, or left by writes of its own.
    fn children(&self, server: &Server) -> Children {
        let mut all = server.children[self.children].clone();
        let newest = all.values().map(|child| version(child)).max().unwrap_or_default();
        for (name, noted) in &self.noted {
            let is_newer = all.get(name).map_or(version(noted) > newest, |heard| version(noted) > version(heard));
            if is_newer {
                all.insert(name.clone(), Arc::clone(noted));
            }
        }
        all
    }

    /// Its next step. Whether a pass has ended, and what it has written.
    fn step(&mut self, server: &mut Server, refused: u8) -> Option<usize> {
        let known = self.known();
        let (mut plan, mut look) = self.pass.take().unwrap_or_else(|| {
            let labels = [(MANAGED_BY, LEASEHOLD), (OWNER_UID, "u"), (SHARD, "widget.example.com")];
            let owner = Owner {
                uid: "u".to_owned(),
                generation: known.metadata.generation,
                namespace: Some("ns".to_owned()),
                name: "p".to_owned(),
                reference: json!({"uid": "u", "controller": true}),
                labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
                manager: MANAGER.to_owned(),
                is_held: true,
            };
            let plan =
                Plan::new(owner, Arc::clone(&self.fights), self.contested.clone(), Arc::default(), Order::default());
            let look = Look {
                parent: serde_json::to_value(&*known).unwrap(),
                related: server.related[self.related],
                is_current: self.store.is_current(&known),
                children: Children::new(),
            };
            (plan, look)
        });
        look.children = self.children(server);
        let generation = look.parent["metadata"]["generation"].as_i64().unwrap();
        self.now = self.now + TICK;
        match plan.next(&look, self.now) {
            Step::Compose => plan.composed(Ok(look.composed())),
            Step::Hold | Step::Announce(_) | Step::Replace(_) | Step::Unfinished => {
                panic!("the object is held, and a pass is short")
            }
            Step::Confirm => {
                if !self.store.has_baseline() {
                    self.store.is_at(server.version);
                }
                if !self.store.read(&parent(&look.parent), parent(server.parent())) {
                    return None;
                }
                plan.confirmed();
            }
            Step::Read(keys) => keys.into_iter().for_each(|key| {
                let found = server.now().get(&key.name).cloned();
                plan.read(key, found);
            }),
            Step::Write(writes) => {
                for (number, write) in writes.into_iter().enumerate() {
                    let is_refused = refused >> (number % 8) & 1 == 1;
                    self.write(server, &mut plan, write, generation, is_refused);
                }
            }
            Step::Delete(deletes) => {
                for Going { key, uid, .. } in deletes {
                    assert!(
                        generation >= server.applied,
                        "{key} is deleted by generation {generation}, after {}",
                        server.applied
                    );
                    let is_it = server.now().get(&key.name).is_some_and(|child| child["metadata"]["uid"] == uid);
                    if is_it {
                        server.applied = generation;
                        server.change(|all| _ = all.remove(&key.name));
                    }
                    plan.deleted(Ok(()));
                }
            }
            Step::Report(Outcome::Done(done)) => {
                let contested = done.trouble.into_iter().filter(|trouble| trouble.reason == CONTESTED);
                self.contested = contested.map(|trouble| trouble.message).collect();
                let (written, pruned) = plan.counts();
                return Some(written + pruned);
            }
            Step::Report(other) => panic!("{other:?}"),
        }
        self.pass = Some((plan, look));
        None
    }

    fn write(&mut self, server: &mut Server, plan: &mut Plan, write: Write, generation: i64, is_refused: bool) {
        let Write { key, mut object, digest, how, .. } = write;
        let live = server.now().get(&key.name).cloned();
        let refusal = Trouble::new("Conflict", "");
        if is_refused {
            return plan.refused(key, refusal);
        }
        let managers = match (&how, &live) {
            (How::Create, Some(live)) => return plan.found(key, Arc::clone(live)),
            (How::Create, None) => {
                let keys = object["data"].as_object().unwrap().keys();
                json!([entry("Update", &keys.cloned().collect())])
            }
            (How::Apply { uid, created, .. }, Some(live)) if live["metadata"]["uid"] == *uid => {
                let (data, managers) = applied(live, &object, created.is_some());
                object["data"] = data;
                managers
            }
            (How::Apply { .. } | How::Mark(_), _) => return plan.refused(key, refusal),
        };
        let before =
            live.as_ref().and_then(|live| meta(live).annotations?.get("leasehold.dev/owner-generation")?.parse().ok());
        assert!(before <= Some(generation), "{key} of generation {before:?} is set back to {generation}");
        assert!(generation >= server.applied, "{key} is written from {generation}, after {}", server.applied);
        server.applied = generation;
        let uid = live.as_ref().map(|live| live["metadata"]["uid"].as_str().unwrap().to_owned());
        let stored = server.store(&key.name, object, uid.as_deref(), managers);
        self.noted.insert(key.name.clone(), Arc::clone(&stored));
        plan.wrote(key, &digest, stored, self.now);
    }
}

/// Between two steps.
const TICK: Duration = Duration::from_millis(20);

/// More steps than this at rest are a loop: a pass has a handful, and two or three are needed.
const AT_REST: usize = 60;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    /// No child is set back or deleted by an older parent than one that was worked from; and when everything has been
    /// heard, the children are soon as the newest parent says, and are left alone then.
    #[test]
    fn nothing_is_done_from_an_older_parent_and_at_rest_all_is_as_the_newest_says(
        schedule in prop::collection::vec(happens(), 0..60),
    ) {
        let mut server = Server::new();
        let mut leader = Leader::new(&server, (0, 0, 0));
        for event in schedule {
            match event {
                Happens::Edit(names, value) => server.edit(&names, value),
                Happens::Relate(value) => server.related.push(value),
                Happens::Meddle(name, deletes) => server.meddle(&format!("child-{name}"), deletes),
                Happens::HearParent => leader.hear_parent(&server),
                Happens::HearChildren => leader.children = (leader.children + 1).min(server.children.len() - 1),
                Happens::HearRelated => leader.related = (leader.related + 1).min(server.related.len() - 1),
                Happens::Step(refused) => _ = leader.step(&mut server, refused),
                Happens::Succeed(parent, children, related) => leader = Leader::new(&server, (parent, children, related)),
            }
        }
        leader.pass = None;
        // Whatever was fought over is quiet.
        leader.now = leader.now + Duration::from_secs(600);
        let mut steps = 0;
        loop {
            while leader.parent + 1 < server.parents.len() {
                leader.hear_parent(&server);
            }
            (leader.children, leader.related) = (server.children.len() - 1, server.related.len() - 1);
            leader.noted.clear();
            if leader.step(&mut server, 0) == Some(0) && leader.known().metadata.generation == server.parent()["metadata"]["generation"].as_i64() {
                break;
            }
            steps += 1;
            prop_assert!(steps < AT_REST, "it does not come to rest");
        }
        let expected = desired(server.parent(), *server.related.last().unwrap());
        let data = |(name, child): (&String, &Arc<Value>)| (name.clone(), child["data"].clone());
        let found: BTreeMap<String, Value> = server.now().iter().map(data).collect();
        prop_assert_eq!(found, expected);
    }
}

/// A rival that changes a child back whenever it was written, by changing it or by deleting it: what it costs is bounded, who
/// it is shows, the other children are looked after meanwhile, and a new leader goes on where the last one was.
#[test]
fn a_fight_costs_a_bounded_number_of_writes_and_holds_nothing_else_up() {
    for deletes in [false, true] {
        let mut server = Server::new();
        server.edit(&BTreeSet::from([0, 1]), 1);
        let mut leader = Leader::new(&server, (0, 0, 0));
        let (mut writes, mut passes) = (0, 0);
        let began = leader.now;
        while leader.now.since(began) < Duration::from_secs(60) {
            leader.children = server.children.len() - 1;
            leader.noted.clear();
            if let Some(written) = leader.step(&mut server, 0) {
                (writes, passes) = (writes + written, passes + 1);
                server.meddle("child-0", deletes);
            }
        }
        // Both children, three more at once, and those at 5, 15 and 35 s.
        assert!((5..=9).contains(&writes), "{writes} writes in {passes} passes");
        assert!(leader.contested.contains("ConfigMap ns/child-0: "), "{}", leader.contested);

        // The other child heals at once, though its sibling is contested.
        server.meddle("child-1", true);
        leader.children = server.children.len() - 1;
        leader.noted.clear();
        (0..20).for_each(|_| _ = leader.step(&mut server, 0));
        assert!(server.now().contains_key("child-1"));

        // The next leader knows of it by the status.
        let contested = std::mem::take(&mut leader.contested);
        leader = Leader { contested, ..Leader::new(&server, (0, 0, 0)) };
        server.meddle("child-0", deletes);
        leader.children = server.children.len() - 1;
        let written: usize = (0..100).filter_map(|_| leader.step(&mut server, 0)).sum();
        assert_eq!(written, 0, "it begins with a wait");
    }
}
