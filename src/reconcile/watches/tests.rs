//! Watches whose events are sent by hand.
#![expect(clippy::disallowed_methods, reason = "the tests end with what they spawn")]

use futures::{FutureExt, StreamExt, channel::mpsc, poll};
use kube::{ResourceExt, runtime::watcher};
use serde_json::json;

use super::{
    super::{
        apply::{OWNER, OWNER_UID},
        raw::Raw,
    },
    source::SourceEvent,
    *,
};

fn object(name: &str, version: u64, owner: Option<&str>) -> Raw {
    saying(name, version, owner, json!({}))
}

/// One with such data.
fn saying(name: &str, version: u64, owner: Option<&str>, data: Value) -> Raw {
    let mut object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": version.to_string(), "uid": name},
        "data": data,
    });
    if let Some(owner) = owner {
        object["metadata"]["labels"] = json!({SHARD: "widget", OWNER_UID: format!("{owner}-uid")});
        object["metadata"]["annotations"] = json!({OWNER: format!("ns/{owner}")});
        object["metadata"]["managedFields"] = json!([{"manager": "leasehold/widget", "operation": "Apply"}]);
    }
    serde_json::from_value(object).unwrap()
}

fn changed(owner: &str) -> Event {
    Event::Changed(Some(Name::new(Some("ns"), owner)))
}

/// Watches whose events are sent by hand, as they were opened.
#[derive(Clone, Default)]
struct Opened(Arc<Mutex<Vec<One>>>);

type One = (Selection, mpsc::UnboundedSender<SourceEvent>);

impl Opened {
    /// The one that was opened last for these shards; all of them without any.
    fn of(&self, shards: &str) -> mpsc::UnboundedSender<SourceEvent> {
        let all = lock(&self.0);
        all.iter().rfind(|(selection, _)| name(selection) == shards).unwrap_or_else(|| panic!("{shards}")).1.clone()
    }

    /// What those that are open are for.
    fn reaches(&self) -> Vec<String> {
        lock(&self.0).iter().filter(|(_, sender)| !sender.is_closed()).map(|(selection, _)| name(selection)).collect()
    }

    fn is_closed(&self) -> bool {
        lock(&self.0).iter().all(|(_, sender)| sender.is_closed())
    }
}

fn name(selection: &Selection) -> String {
    match selection {
        Selection::All => String::new(),
        Selection::Shards(shards) => shards.iter().map(|shard| &**shard).collect::<Vec<_>>().join(" "),
    }
}

fn watch() -> (Opened, Arc<Shared>) {
    watch_in(&Rooms::default())
}

fn watch_in(rooms: &Rooms) -> (Opened, Arc<Shared>) {
    let opened = Opened::default();
    let opening = {
        let opened = opened.clone();
        move |selection: &Selection, _| {
            let (sender, receiver) = mpsc::unbounded();
            lock(&opened.0).push((selection.clone(), sender));
            receiver.boxed()
        }
    };
    (opened, Arc::new(Shared::new(Box::new(opening), rooms.clone())))
}

fn send(opened: &Opened, events: impl IntoIterator<Item = watcher::Event<Raw>>) {
    send_of(opened, "", events);
}

/// By the source for these shards.
fn send_of(opened: &Opened, shards: &str, events: impl IntoIterator<Item = watcher::Event<Raw>>) {
    for event in events {
        opened.of(shards).unbounded_send(SourceEvent::Watched(event)).unwrap();
    }
}

fn list(objects: impl IntoIterator<Item = Raw>) -> Vec<watcher::Event<Raw>> {
    let all = objects.into_iter().map(watcher::Event::InitApply);
    [watcher::Event::Init].into_iter().chain(all).chain([watcher::Event::InitDone]).collect()
}

fn received(subscriber: &mut Subscriber) -> Vec<Event> {
    std::iter::from_fn(|| subscriber.next().now_or_never().flatten()).collect()
}

#[test]
fn every_subscriber_gets_every_change_and_its_owner() {
    let (sender, shared) = watch();
    let (mut one, mut other) = (Subscriber::new(Arc::clone(&shared), None), Subscriber::new(Arc::clone(&shared), None));
    send(&sender, list([object("a", 1, Some("w"))]));
    assert_eq!(received(&mut one), [changed("w"), Event::Listed]);
    send(&sender, [watcher::Event::Apply(object("a", 2, Some("v"))), watcher::Event::Delete(object("a", 3, None))]);
    assert_eq!(received(&mut one), [changed("v"), changed("w"), changed("v")], "whose it was hears of it too");
    assert_eq!(received(&mut other), [changed("w"), Event::Listed, changed("v"), changed("w"), changed("v")]);
    assert_eq!(received(&mut Subscriber::new(shared, None)), [Event::Listed], "who comes later looks for itself");
}

fn of_shard(shard: &str, name: &str, version: u64, owner: &str) -> Raw {
    let mut object = object(name, version, Some(owner));
    object.labels_mut().insert(SHARD.to_owned(), shard.to_owned());
    object
}

#[test]
fn a_subscriber_of_a_shard_gets_the_events_of_that_shard_only() {
    let (sender, shared) = watch();
    let subscribe = |shard| Subscriber::new(Arc::clone(&shared), Some(shard));
    let (mut ours, mut others) = (subscribe("widget"), subscribe("gadget"));
    send_of(&sender, "widget", list([object("a", 1, Some("w")), object("c", 2, None)]));
    assert_eq!((received(&mut ours), received(&mut others)), (vec![changed("w"), Event::Listed], vec![]));
    let readiness = |subscriber: &Subscriber| subscriber.objects().readiness();
    assert_eq!((readiness(&ours), readiness(&others)), (Readiness::Ready, Readiness::Unlisted));
    send_of(&sender, "gadget", list([of_shard("gadget", "b", 3, "g")]));
    assert_eq!((received(&mut ours), received(&mut others)), (vec![], vec![changed("g"), Event::Listed]));
    assert_eq!((readiness(&ours), readiness(&others)), (Readiness::Ready, Readiness::Ready));
    // Whose it was hears of it too, whichever of the two sources speaks first.
    send_of(&sender, "widget", [watcher::Event::Apply(object("b", 4, Some("w")))]);
    send_of(&sender, "gadget", [watcher::Event::Delete(of_shard("gadget", "b", 4, "g"))]);
    assert_eq!((received(&mut ours), received(&mut others)), (vec![changed("w")], vec![changed("g")]));
    assert_eq!(ours.objects().all().len(), 2);
}

/// A user who may create objects with our labels would fill the cache of every replica.
#[test]
fn of_a_copy_that_bears_our_labels_no_more_than_the_name_is_kept() {
    let (sender, shared) = watch();
    let mut subscriber = Subscriber::new(shared, Some("widget"));
    let large = json!({"large": "x".repeat(1 << 20)});
    let (child, mut copy) = (object("a", 1, Some("w")), saying("b", 2, Some("w"), large));
    copy.metadata.managed_fields = None;
    send_of(&sender, "widget", list([child, copy.clone()]));
    received(&mut subscriber);
    let objects = subscriber.objects();
    assert!(objects.bytes() < 1000, "{}", objects.bytes());
    assert!(objects.get(&Name::parse("ns/a")).is_some() && objects.get(&Name::parse("ns/b")).is_none());
    assert_eq!(objects.of_owner("w-uid").len(), 2, "both are known to be there");
    copy.metadata.resource_version = Some("3".to_owned());
    send_of(&sender, "widget", [watcher::Event::Apply(copy)]);
    assert_eq!(received(&mut subscriber), [changed("w")]);
    assert!(objects.bytes() < 1000);
}

/// A composition may ask who writes a field; which ones another writes takes much memory, and is not compared.
#[test]
fn of_the_entries_of_others_their_place_and_their_writer_are_kept() {
    let (sender, shared) = watch();
    let mut subscriber = Subscriber::new(shared, Some("widget"));
    let mut child = serde_json::to_value(object("a", 1, Some("w"))).unwrap();
    let of = |manager: &str| json!({"manager": manager, "operation": "Update", "subresource": "scale", "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}});
    let ours = child["metadata"]["managedFields"][0].clone();
    child["metadata"]["managedFields"] = json!([of("autoscaler"), ours, of("kubectl")]);
    send_of(&sender, "widget", list([serde_json::from_value(child).unwrap()]));
    received(&mut subscriber);
    let kept = subscriber.objects().get(&Name::parse("ns/a")).unwrap();
    let by = |manager: &str| json!({"manager": manager, "operation": "Update", "subresource": "scale"});
    assert_eq!(kept["metadata"]["managedFields"], json!([by("autoscaler"), ours, by("kubectl")]));
}

#[test]
fn how_much_is_kept_is_known_without_reading_it() {
    let (sender, shared) = watch();
    let mut subscriber = Subscriber::new(shared, None);
    let large = |name: &str, version, length: usize| saying(name, version, None, json!({"x": "x".repeat(length)}));
    send(&sender, list([large("a", 1, 5000), large("b", 2, 5000)]));
    received(&mut subscriber);
    let objects = subscriber.objects();
    assert!((10_000..11_000).contains(&objects.bytes()), "{}", objects.bytes());
    send(&sender, [watcher::Event::Apply(large("a", 3, 1000)), watcher::Event::Delete(large("b", 4, 0))]);
    received(&mut subscriber);
    assert!((1000..2000).contains(&objects.bytes()), "{}", objects.bytes());
    send(&sender, list([]));
    received(&mut subscriber);
    assert_eq!(objects.bytes(), 0);
}

/// Its event ended the watch, and no other object of the type was heard of again.
#[test]
fn what_is_too_deep_to_be_looked_into_is_known_by_its_name() {
    let (sender, shared) = watch();
    let mut subscriber = Subscriber::new(shared, None);
    let nested = (0..150).fold(json!(1), |inner, _| json!([inner]));
    send(&sender, list([object("a", 1, None), saying("b", 2, Some("w"), nested)]));
    received(&mut subscriber);
    let objects = subscriber.objects();
    assert_eq!(objects.too_deep(), Some(Name::parse("ns/b")));
    assert_eq!(objects.missing("w-uid"), [Name::parse("ns/b")], "whose child it is reads it");
    assert_eq!((objects.all().len(), objects.get(&Name::parse("ns/b"))), (1, None));
    send(&sender, [watcher::Event::Apply(object("b", 3, Some("w")))]);
    received(&mut subscriber);
    assert_eq!((objects.too_deep(), objects.all().len()), (None, 2));
}

#[test]
fn what_there_is_no_room_for_is_known_by_its_name_until_there_is() {
    let rooms = Rooms::default();
    rooms.limit("widget", "Widget", 12_000);
    let (sender, shared) = watch_in(&rooms);
    let mut subscriber = Subscriber::new(shared, Some("widget"));
    let large = |name: &str, version, length: usize| saying(name, version, Some("w"), json!({"x": "x".repeat(length)}));
    send_of(&sender, "widget", list([large("a", 1, 5000), large("b", 2, 5000), large("c", 3, 5000)]));
    received(&mut subscriber);
    let objects = subscriber.objects();
    let missing = || objects.missing("w-uid").iter().map(|name| name.name().to_owned()).collect::<Vec<_>>().join(" ");
    assert_eq!((missing().as_str(), rooms.of(&Arc::from("widget")).missing()), ("c", 1));
    assert!(objects.get(&Name::parse("ns/a")).is_some() && objects.get(&Name::parse("ns/c")).is_none());
    assert_eq!(objects.of_owner("w-uid").len(), 3, "all are known to be there");
    send_of(
        &sender,
        "widget",
        [watcher::Event::Delete(large("a", 4, 5000)), watcher::Event::Apply(large("c", 5, 5000))],
    );
    received(&mut subscriber);
    assert_eq!((missing().as_str(), objects.get(&Name::parse("ns/c")).is_some()), ("", true));
    // Two sources of one shard have one room.
    let (second, shared) = watch_in(&rooms);
    let mut other = Subscriber::new(shared, Some("widget"));
    send_of(&second, "widget", list([large("d", 6, 5000)]));
    received(&mut other);
    assert_eq!(other.objects().missing("w-uid").len(), 1);
    drop(subscriber);
    send_of(&second, "widget", [watcher::Event::Apply(large("d", 7, 5000))]);
    received(&mut other);
    assert_eq!(other.objects().missing("w-uid").len(), 0, "the room of a watch that has ended is free");
}

#[test]
fn sources_are_joined_when_one_for_all_has_listed() {
    let (sender, shared) = watch();
    let subscribe = |shard| Subscriber::new(Arc::clone(&shared), Some(shard));
    let (mut ours, mut others, mut third) = (subscribe("widget"), subscribe("gadget"), subscribe("thing"));
    assert_eq!(sender.reaches(), ["widget", "gadget", "thing", "gadget thing widget"], "one is joining, not two");
    send_of(&sender, "widget", list([object("a", 1, Some("w")), object("b", 1, Some("w"))]));
    send_of(&sender, "gadget", list([of_shard("gadget", "x", 1, "g")]));
    send_of(&sender, "thing", list([]));
    assert_eq!((received(&mut ours).len(), received(&mut others).len(), received(&mut third).len()), (2, 2, 1));
    let everything = [object("a", 1, Some("w")), object("b", 1, Some("w")), of_shard("gadget", "x", 2, "g")];
    let joined = list(everything);
    send_of(&sender, "gadget thing widget", joined[..2].to_vec());
    received(&mut ours);
    // What the others tell while it lists is newer than its list.
    send_of(&sender, "widget", [watcher::Event::Apply(object("a", 5, Some("w")))]);
    assert_eq!(received(&mut ours), [changed("w")]);
    send_of(&sender, "gadget thing widget", joined[2..].to_vec());
    assert_eq!(
        (received(&mut ours), received(&mut others), received(&mut third)),
        (vec![], vec![changed("g")], vec![])
    );
    assert_eq!(sender.reaches(), ["gadget thing widget"]);
    let objects = ours.objects();
    assert_eq!((objects.all().len(), objects.readiness()), (3, Readiness::Ready));
    assert_eq!(objects.get(&Name::parse("ns/a")).unwrap()["metadata"]["resourceVersion"], "5");
}

#[test]
fn what_is_deleted_while_a_source_lists_does_not_come_back() {
    let (sender, shared) = watch();
    let (mut ours, _others) =
        (Subscriber::new(Arc::clone(&shared), Some("widget")), Subscriber::new(shared, Some("gadget")));
    send_of(&sender, "widget", list([object("a", 1, Some("w"))]));
    received(&mut ours);
    let joined = list([object("a", 1, Some("w"))]);
    send_of(&sender, "gadget widget", joined[..2].to_vec());
    received(&mut ours);
    send_of(&sender, "widget", [watcher::Event::Delete(object("a", 2, Some("w")))]);
    assert_eq!(received(&mut ours), [changed("w")]);
    send_of(&sender, "gadget widget", joined[2..].to_vec());
    assert_eq!((received(&mut ours), ours.objects().all().len()), (vec![], 0));
}

#[test]
fn what_is_troubled_is_what_is_not_seen_yet() {
    let (sender, shared) = watch();
    let mut ours = Subscriber::new(Arc::clone(&shared), Some("widget"));
    send_of(&sender, "widget", list([]));
    received(&mut ours);
    let mut others = Subscriber::new(shared, Some("gadget"));
    sender.of("gadget").unbounded_send(SourceEvent::Trouble("forbidden".to_owned())).unwrap();
    assert_eq!((received(&mut ours), received(&mut others)), (vec![], vec![]));
    let troubled = Readiness::Failing("forbidden".to_owned());
    assert_eq!((ours.objects().readiness(), others.objects().readiness()), (Readiness::Ready, troubled));
}

#[test]
fn a_shard_without_subscribers_is_forgotten_and_listed_anew_when_it_comes_back() {
    let (sender, shared) = watch();
    let subscribe = |shard| Subscriber::new(Arc::clone(&shared), Some(shard));
    let (mut ours, mut others) = (subscribe("widget"), subscribe("gadget"));
    send_of(&sender, "gadget widget", list([object("a", 1, Some("w")), of_shard("gadget", "b", 2, "g")]));
    assert_eq!((received(&mut ours).len(), received(&mut others).len()), (2, 2));
    let objects = ours.objects();
    drop(others);
    // The watch still brings them.
    send_of(&sender, "gadget widget", [watcher::Event::Apply(of_shard("gadget", "c", 3, "g"))]);
    assert_eq!((received(&mut ours), objects.all().len(), objects.of_owner("g-uid").len()), (vec![], 1, 0));
    let mut again = subscribe("gadget");
    assert_eq!(again.objects().readiness(), Readiness::Unlisted);
    send_of(&sender, "gadget", list([of_shard("gadget", "c", 3, "g")]));
    assert_eq!(received(&mut again), [changed("g"), Event::Listed]);
    assert_eq!(objects.of_owner("g-uid"), [Name::parse("ns/c")]);
}

#[test]
fn an_object_that_another_shard_takes_is_gone_from_ours() {
    let (sender, shared) = watch();
    let mut ours = Subscriber::new(shared, Some("widget"));
    send_of(&sender, "widget", list([object("a", 1, Some("w"))]));
    received(&mut ours);
    send_of(&sender, "widget", [watcher::Event::Delete(of_shard("gadget", "a", 2, "g"))]);
    assert_eq!((received(&mut ours), ours.objects().all().len()), (vec![changed("w")], 0));
}

#[test]
fn the_server_is_asked_for_the_shards() {
    let of = Arc::new(Type::new("", "v1", "ConfigMap"));
    let query =
        |labels: &str| Query { of: Arc::clone(&of), namespace: None, labels: labels.to_owned(), fields: String::new() };
    let selection = Selection::Shards(["b", "a"].map(Shard::from).into_iter().collect());
    assert_eq!(query("x=y").within(&selection).labels, "x=y,leasehold.dev/shard in (a,b)");
    assert_eq!(query("").within(&selection).labels, "leasehold.dev/shard in (a,b)");
    assert_eq!(query("x=y").within(&Selection::All), query("x=y"));
}

#[test]
fn a_new_list_tells_of_what_is_gone_and_of_what_is_new_only() {
    let (sender, shared) = watch();
    let mut subscriber = Subscriber::new(shared, None);
    send(&sender, list([object("a", 1, Some("w")), object("b", 2, Some("v")), object("c", 3, None)]));
    received(&mut subscriber);
    send(&sender, list([object("a", 1, Some("w")), object("c", 4, None)]));
    assert_eq!(received(&mut subscriber), [changed("v"), Event::Changed(None)]);
    let objects = subscriber.objects();
    assert_eq!((objects.all().len(), objects.get(&Name::parse("ns/b"))), (2, None));
    assert_eq!((objects.of_owner("w-uid").len(), objects.of_owner("v-uid").len()), (1, 0));
}

#[test]
fn what_we_wrote_is_seen_at_once_and_its_event_is_no_news() {
    let (sender, shared) = watch();
    let mut subscriber = Subscriber::new(shared, None);
    send(&sender, list([object("a", 1, Some("w"))]));
    received(&mut subscriber);
    let objects = subscriber.objects();
    objects.note(object("a", 5, Some("w")));
    let version = || objects.get(&Name::parse("ns/a")).unwrap()["metadata"]["resourceVersion"].clone();
    assert_eq!(version(), "5");
    send(&sender, [watcher::Event::Apply(object("a", 4, Some("w"))), watcher::Event::Apply(object("a", 5, Some("w")))]);
    assert_eq!((received(&mut subscriber), version()), (vec![], json!("5")), "an older one does not come back");
    send(&sender, [watcher::Event::Apply(object("a", 6, Some("w")))]);
    assert_eq!((received(&mut subscriber), version()), (vec![changed("w")], json!("6")));
}

#[tokio::test]
async fn the_subscriber_that_drives_the_watch_may_go_and_the_others_go_on() {
    let (sender, shared) = watch();
    let (mut driver, mut other) = (Subscriber::new(Arc::clone(&shared), None), Subscriber::new(shared, None));
    let waiting = tokio::task::spawn(async move { other.next().await });
    tokio::task::yield_now().await;
    // The last to look is whom the watch wakes; it never looks again.
    assert!(poll!(driver.next()).is_pending());
    drop(driver);
    send(&sender, list([]));
    assert_eq!(waiting.await.unwrap(), Some(Event::Listed));
}

#[tokio::test]
async fn a_sleeping_subscriber_is_woken_by_what_another_has_read() {
    let (sender, shared) = watch();
    let (mut driver, mut other) = (Subscriber::new(Arc::clone(&shared), None), Subscriber::new(shared, None));
    let waiting = tokio::task::spawn(async move { other.next().await });
    tokio::task::yield_now().await;
    send(&sender, list([]));
    assert_eq!(driver.next().await, Some(Event::Listed));
    assert_eq!(waiting.await.unwrap(), Some(Event::Listed));
}

#[test]
fn a_watch_ends_with_its_last_subscriber() {
    let (sender, shared) = watch();
    let (one, other) = (Subscriber::new(Arc::clone(&shared), None), Subscriber::new(shared, None));
    let objects = one.objects();
    drop(one);
    assert!(!sender.is_closed());
    drop(other);
    assert!(sender.is_closed());
    assert_eq!((objects.readiness(), objects.all().len()), (Readiness::Unlisted, 0), "who looks keeps nothing open");
}

#[test]
fn a_type_that_is_not_served_has_no_objects_until_it_is() {
    let (sender, shared) = watch();
    let mut subscriber = Subscriber::new(shared, None);
    let objects = subscriber.objects();
    assert_eq!(objects.readiness(), Readiness::Unlisted);
    for _ in 0..2 {
        sender.of("").unbounded_send(SourceEvent::Unserved).unwrap();
    }
    assert_eq!((received(&mut subscriber), objects.readiness()), (vec![Event::Listed], Readiness::Unserved));
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
    sender.of("").unbounded_send(SourceEvent::Served(resource, Scope::Namespaced)).unwrap();
    sender.of("").unbounded_send(SourceEvent::Trouble("forbidden".to_owned())).unwrap();
    assert_eq!((received(&mut subscriber), objects.readiness()), (vec![], Readiness::Failing("forbidden".to_owned())));
    send(&sender, list([]));
    assert_eq!((received(&mut subscriber), objects.readiness()), (vec![Event::Listed], Readiness::Ready));
}

#[test]
fn a_type_whose_crd_is_removed_has_no_objects_any_more_and_makes_its_owners_due() {
    let (sender, shared) = watch();
    let mut subscriber = Subscriber::new(shared, None);
    let objects = subscriber.objects();
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
    sender.of("").unbounded_send(SourceEvent::Served(resource, Scope::Namespaced)).unwrap();
    send(&sender, list([object("a", 1, Some("w"))]));
    assert_eq!(received(&mut subscriber).len(), 2);
    sender.of("").unbounded_send(SourceEvent::Unserved).unwrap();
    assert_eq!(received(&mut subscriber), [changed("w")]);
    assert_eq!((objects.readiness(), objects.all().len(), objects.served().is_none()), (Readiness::Unserved, 0, true));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_goes_on_failing_is_stale_until_it_has_an_event_or_does_not_fail_any_more() {
    let (sender, shared) = watch();
    let mut subscriber = Subscriber::new(shared, None);
    let objects = subscriber.objects();
    send(&sender, list([]));
    assert_eq!(received(&mut subscriber), [Event::Listed]);
    let fail = || sender.of("").unbounded_send(SourceEvent::Trouble("500".to_owned())).unwrap();
    fail();
    assert_eq!((received(&mut subscriber), objects.readiness()), (vec![], Readiness::Ready), "one failure is no news");
    for news in [vec![Event::Listed], vec![]] {
        tokio::time::advance(std::time::Duration::from_secs(12)).await;
        fail();
        send(&sender, [watcher::Event::Init]);
        assert_eq!((received(&mut subscriber), objects.readiness()), (news, Readiness::Stale("500".to_owned())));
    }
    tokio::time::advance(std::time::Duration::from_secs(61)).await;
    assert_eq!(objects.readiness(), Readiness::Ready);
    fail();
    assert_eq!(objects.readiness(), Readiness::Ready, "it begins anew");
}
