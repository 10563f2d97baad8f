//! The clock, window by window, and what a pass asks of the API server.

use std::sync::{Arc, Mutex};

use http::Method;
use k8s_openapi::jiff::{
    Span, Timestamp, ToSpan,
    civil::{Weekday, date},
    tz::TimeZone,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{plan::validate, *};
use crate::reconcile::{
    clock::Clock,
    fake::{Answer, Asked, Fake, refusal},
    stages::Common,
    store::Store,
};

fn spec(zone: &str, windows: Value) -> ScaleScheduleSpec {
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
    serde_json::from_value(json!({"targetRef": target, "timezone": zone, "windows": windows})).unwrap()
}

fn window(days: Value, from: &str, to: &str, replicas: i32) -> Value {
    json!({"days": days, "from": from, "to": to, "replicas": replicas})
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn planned(zone: &str, windows: Value, now: &str) -> (Option<String>, Option<String>) {
    let Windows { active, next } = plan::windows(at(now), &validate(&spec(zone, windows)).unwrap());
    (active.map(|active| active.label), next.map(|next| next.to_string()))
}

fn some(label: &str, next: &str) -> (Option<String>, Option<String>) {
    ((!label.is_empty()).then(|| label.to_owned()), Some(next.to_owned()))
}

#[test]
fn a_window_lasts_from_its_first_instant_to_before_its_last() {
    let windows = || json!([window(json!(["Mon"]), "08:00", "18:00", 0)]);
    for (now, expected) in [
        ("2026-11-23T07:59:59Z", some("", "2026-11-23T08:00:00Z")),
        ("2026-11-23T08:00:00Z", some("Mon 08:00-18:00", "2026-11-23T18:00:00Z")),
        ("2026-11-23T17:59:59.999Z", some("Mon 08:00-18:00", "2026-11-23T18:00:00Z")),
        ("2026-11-23T18:00:00Z", some("", "2026-11-30T08:00:00Z")),
    ] {
        assert_eq!(planned("UTC", windows(), now), expected, "{now}");
    }
}

#[test]
fn a_window_may_cross_midnight_and_the_end_of_the_week() {
    let windows = || json!([window(json!(["Sun"]), "22:00", "06:00", 0)]);
    assert_eq!(planned("UTC", windows(), "2026-11-22T23:00:00Z"), some("Sun 22:00-06:00", "2026-11-23T06:00:00Z"));
    assert_eq!(planned("UTC", windows(), "2026-11-23T05:00:00Z"), some("Sun 22:00-06:00", "2026-11-23T06:00:00Z"));
    assert_eq!(planned("UTC", windows(), "2026-11-23T06:00:00Z"), some("", "2026-11-29T22:00:00Z"));
}

#[test]
fn windows_that_follow_each_other_change_without_a_gap() {
    let windows = || json!([window(json!(["Mon"]), "08:00", "12:00", 1), window(json!(["Mon"]), "12:00", "13:00", 2)]);
    assert_eq!(planned("UTC", windows(), "2026-11-23T11:00:00Z"), some("Mon 08:00-12:00", "2026-11-23T12:00:00Z"));
    assert_eq!(planned("UTC", windows(), "2026-11-23T12:00:00Z"), some("Mon 12:00-13:00", "2026-11-23T13:00:00Z"));
}

#[test]
fn a_time_that_the_clock_skips_is_when_it_goes_on() {
    // On 2026-03-29 at 02:00 clocks in Berlin show 03:00.
    let skipped = || json!([window(json!(["Sun"]), "02:30", "04:00", 0)]);
    assert_eq!(planned("Europe/Berlin", skipped(), "2026-03-29T00:59:59Z"), some("", "2026-03-29T01:00:00Z"));
    assert_eq!(
        planned("Europe/Berlin", skipped(), "2026-03-29T01:00:00Z"),
        some("Sun 02:30-04:00", "2026-03-29T02:00:00Z")
    );
    let within = || json!([window(json!(["Sun"]), "02:10", "02:50", 0), window(json!(["Sun"]), "01:00", "02:05", 1)]);
    assert_eq!(
        planned("Europe/Berlin", within(), "2026-03-29T00:30:00Z"),
        some("Sun 01:00-02:05", "2026-03-29T01:00:00Z"),
        "the clock never shows the other one"
    );
    assert_eq!(planned("Europe/Berlin", within(), "2026-03-29T01:00:00Z").0, None);
}

#[test]
fn a_time_that_the_clock_shows_twice_is_the_first() {
    // On 2026-11-01 at 02:00 clocks in New York show 01:00 again.
    let windows = || json!([window(json!(["Sun"]), "01:30", "03:00", 0)]);
    assert_eq!(
        planned("America/New_York", windows(), "2026-11-01T05:30:00Z"),
        some("Sun 01:30-03:00", "2026-11-01T08:00:00Z"),
        "two and a half hours long"
    );
    assert_eq!(planned("America/New_York", windows(), "2026-11-01T05:29:59Z").0, None);
}

#[test]
fn a_zone_need_not_be_whole_hours_away() {
    let windows = json!([window(json!(["Mon"]), "00:00", "01:00", 0)]);
    assert_eq!(
        planned("Asia/Kathmandu", windows, "2026-11-22T18:15:00Z"),
        some("Mon 00:00-01:00", "2026-11-22T19:15:00Z")
    );
}

#[test]
fn what_means_nothing_is_told() {
    let mon = || json!(["Mon"]);
    for (zone, windows, expected) in [
        ("Berlin", json!([window(mon(), "08:00", "09:00", 0)]), "\"Berlin\" is no time zone"),
        ("UTC", json!([]), "at least one is required"),
        ("UTC", json!([window(json!([]), "08:00", "09:00", 0)]), "windows[0].days: at least one"),
        ("UTC", json!([window(mon(), "8:00", "09:00", 0)]), "windows[0].from: \"8:00\" is no time"),
        ("UTC", json!([window(mon(), "08:00", "24:00", 0)]), "windows[0].to: \"24:00\" is no time"),
        ("UTC", json!([window(mon(), "08:00", "08:00", 0)]), "from and to must differ"),
        ("UTC", json!([window(mon(), "08:00", "09:00", -1)]), "must not be negative"),
        (
            "UTC",
            json!([window(mon(), "08:00", "10:00", 0), window(mon(), "09:59", "11:00", 1)]),
            "windows[1] overlaps with spec.windows[0]: Mon 09:59-11:00",
        ),
        (
            "UTC",
            json!([window(mon(), "05:00", "07:00", 0), window(json!(["Sun"]), "22:00", "05:01", 1)]),
            "windows[1] overlaps with spec.windows[0]",
        ),
        ("UTC", json!([window(json!(["Mon", "Mon"]), "08:00", "09:00", 0)]), "windows[0] overlaps with itself"),
    ] {
        let wrong = validate(&spec(zone, windows)).map(|_| ()).unwrap_err();
        assert!(wrong.contains(expected), "{wrong}");
    }
    for (field, value) in [
        ("name", "web/scale?x="),
        ("name", "../../victim"),
        ("name", "Web"),
        ("name", ""),
        ("apiVersion", "apps/v1/../.."),
        ("kind", "Deployment/x"),
    ] {
        let mut bad = spec("UTC", json!([window(mon(), "08:00", "09:00", 0)]));
        let of = &mut bad.target_ref;
        let at = match field {
            "name" => &mut of.name,
            "kind" => &mut of.kind,
            _ => &mut of.api_version,
        };
        value.clone_into(at);
        let wrong = validate(&bad).map(|_| ()).unwrap_err();
        assert!(wrong.starts_with(&format!("spec.targetRef.{field}: {value:?} is no ")), "{wrong}");
    }
    let touching = json!([window(mon(), "05:00", "07:00", 0), window(json!(["Sun"]), "22:00", "05:00", 1)]);
    validate(&spec("UTC", touching)).unwrap();
}

/// Which window a person would say is active, who looks at the clock on the wall: the slow way.
fn on_the_wall(zone: &TimeZone, now: Timestamp, windows: &[(Weekday, i8, i8)]) -> Option<usize> {
    let wall = now.to_zoned(zone.clone()).datetime();
    windows.iter().position(|(day, from, to)| {
        let hour = wall.hour();
        let is_today = wall.date().weekday() == *day;
        let is_yesterday = wall.date().yesterday().unwrap().weekday() == *day;
        if to > from {
            is_today && (*from..*to).contains(&hour)
        } else {
            (is_today && hour >= *from) || (is_yesterday && hour < *to)
        }
    })
}

proptest! {
    /// Minute by minute over the weeks in which clocks change: the plan is what the clock on the wall says, and the next
    /// transition is the first minute at which that changes.
    #[test]
    fn the_plan_is_what_the_clock_on_the_wall_says(
        zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]),
        season in prop::sample::select(vec![date(2026, 3, 27), date(2026, 10, 23), date(2026, 10, 30), date(2026, 4, 3), date(2026, 10, 2)]),
        starts in prop::collection::btree_set(0..7 * 24_i32, 1..5),
        minute in 0..5 * 24 * 60_i64,
    ) {
        // Times that no clock skips or shows twice: those have tests of their own.
        let hour = |start: i32| i8::try_from(start % 24).unwrap();
        let starts: Vec<i32> = starts.into_iter().filter(|start| !(0..4).contains(&hour(*start))).collect();
        prop_assume!(!starts.is_empty());
        let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        let weekday = |start: i32| Weekday::from_monday_zero_offset(i8::try_from(start / 24).unwrap()).unwrap();
        let windows: Vec<Value> = starts.iter().enumerate().map(|(number, start)| {
            let from = hour(*start);
            window(json!([days[usize::try_from(start / 24).unwrap()]]), &format!("{from:02}:00"), &format!("{:02}:00", (from + 1) % 24), i32::try_from(number).unwrap())
        }).collect();
        let slots: Vec<_> = starts.iter().map(|start| (weekday(*start), hour(*start), (hour(*start) + 1) % 24)).collect();
        let valid = validate(&spec(zone, json!(windows))).unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let step: Span = 1.minute();
        let mut now = season.to_zoned(zone.clone()).unwrap().timestamp().checked_add(minute.minutes()).unwrap();
        let planned = plan::windows(now, &valid);
        let seen = on_the_wall(&zone, now, &slots);
        prop_assert_eq!(planned.active.as_ref().map(|active| usize::try_from(active.replicas).unwrap()), seen, "at {}", now);
        // Up to two days ahead; the next may be later.
        for _ in 0..2 * 24 * 60 {
            now = now.checked_add(step).unwrap();
            if on_the_wall(&zone, now, &slots) != seen {
                prop_assert_eq!(planned.next, Some(now));
                return Ok(());
            }
        }
        prop_assert!(planned.next.is_none_or(|next| next > now));
    }
}

struct Fixed(Timestamp);

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// A Deployment of so many replicas, and an autoscaler or none.
struct World {
    replicas: Option<i32>,
    autoscaled: bool,
    refuses: bool,
    /// Another writer has changed the schedule since it was seen.
    is_ahead: bool,
}

fn answer(world: &Mutex<World>, asked: &Asked) -> Answer {
    let path = asked.uri.split('?').next().unwrap();
    let mut world = world.lock().unwrap();
    let scale = |replicas: i32| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": replicas}});
    match (&asked.method, path) {
        (&Method::GET, "/apis/apps/v1") => Some((
            200,
            json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "apps/v1", "resources": [
                    {"name": "deployments", "singularName": "deployment", "namespaced": true, "kind": "Deployment", "verbs": ["get", "list"]},
                    {"name": "deployments/scale", "singularName": "", "namespaced": true, "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get", "patch"]},
                ],
            }),
        )),
        (&Method::GET, path) if path.ends_with("/horizontalpodautoscalers") => {
            let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
            let spec = json!({"scaleTargetRef": target, "maxReplicas": 3});
            let items: Vec<_> =
                world.autoscaled.then(|| json!({"metadata": {"name": "h"}, "spec": spec})).into_iter().collect();
            Some((200, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})))
        }
        (method, path) if path.ends_with("/d/scale") => match (world.replicas, method) {
            (None, _) => refusal(404, "NotFound"),
            (Some(_), &Method::PATCH) if world.refuses => refusal(403, "Forbidden"),
            (Some(_), &Method::PATCH) => {
                let wanted = asked.body["spec"]["replicas"].as_i64().unwrap();
                world.replicas = Some(i32::try_from(wanted).unwrap());
                Some((200, scale(i32::try_from(wanted).unwrap())))
            }
            (Some(replicas), _) => Some((200, scale(replicas))),
        },
        (&Method::PATCH, path) if path.ends_with("/scaleschedules/s") && world.is_ahead => refusal(409, "Conflict"),
        (&Method::PATCH, path) if path.ends_with("/scaleschedules/s") => Some((200, schedule(json!({}), None))),
        (_, path) if path.ends_with("/s/status") => Some((200, asked.body.clone())),
        _ => Some((200, json!({}))),
    }
}

/// A schedule that is in its window on Mondays from 08:00 to 18:00, with no replicas.
fn schedule(status: Value, deleted: Option<&str>) -> Value {
    let windows = json!([window(json!(["Mon"]), "08:00", "18:00", 0)]);
    json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "ScaleSchedule",
        "metadata": {
            "name": "s", "namespace": "ns", "uid": "u", "resourceVersion": "1", "generation": 1,
            "finalizers": [FINALIZER], "deletionTimestamp": deleted,
        },
        "spec": spec("UTC", windows), "status": status,
    })
}

const IN_WINDOW: &str = "2026-11-23T12:00:00Z";
const AFTERWARDS: &str = "2026-11-23T19:00:00Z";

type Passed = Result<RequeueAfter, Error<ObserveError, ApplyError>>;

/// One pass over that schedule at that time: what came of it, and what was written, in order.
async fn pass(object: Value, now: &str, world: World) -> (Passed, Vec<(String, Value)>, Option<i32>) {
    let world = Arc::new(Mutex::new(world));
    let fake = {
        let world = Arc::clone(&world);
        Fake::new(1, move |asked| answer(&world, asked))
    };
    let stages = Arc::new(Schedule::default());
    let common = Common::new(stages, Arc::new(Fixed(at(now))), (), Store::new(()), fake.term.clone());
    let pass = Pass::new(&common, Arc::new(serde_json::from_value(object).unwrap()));
    let outcome = pass.reconcile().await;
    let writes = fake.asked().into_iter().filter(|asked| asked.method != Method::GET && !asked.uri.contains("/events"));
    let writes = writes
        .map(|asked| (asked.uri.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned(), asked.body))
        .collect();
    let replicas = world.lock().unwrap().replicas;
    (outcome, writes, replicas)
}

fn there(replicas: i32) -> World {
    World { replicas: Some(replicas), autoscaled: false, refuses: false, is_ahead: false }
}

fn kinds(writes: &[(String, Value)]) -> Vec<&str> {
    writes.iter().map(|(what, _)| what.as_str()).collect()
}

#[tokio::test]
async fn what_was_there_is_written_down_before_it_is_changed() {
    let (outcome, writes, replicas) = pass(schedule(json!({}), None), IN_WINDOW, there(3)).await;
    assert_eq!((outcome.unwrap(), replicas), (Some(LOOK), Some(0)));
    assert_eq!(kinds(&writes), ["status", "scale"]);
    assert_eq!(writes[0].1["status"]["savedReplicas"], 3);
    assert_eq!(writes[0].1["status"]["activeWindow"], "Mon 08:00-18:00");
}

#[tokio::test]
async fn a_restart_in_a_window_keeps_what_was_written_down() {
    let (_, writes, replicas) = pass(schedule(json!({"savedReplicas": 3}), None), IN_WINDOW, there(7)).await;
    assert_eq!(replicas, Some(0), "a change by hand is set back");
    assert_eq!(writes[0].1["status"]["savedReplicas"], 3);
}

#[tokio::test]
async fn a_settled_schedule_is_left_alone() {
    let (_, writes, _) = pass(schedule(json!({}), None), IN_WINDOW, there(0)).await;
    let status = writes[0].1["status"].clone();
    let (_, writes, _) = pass(schedule(status, None), IN_WINDOW, there(0)).await;
    assert_eq!(kinds(&writes), Vec::<&str>::new());
}

#[tokio::test]
async fn afterwards_it_is_restored_and_forgotten() {
    let (outcome, writes, replicas) = pass(schedule(json!({"savedReplicas": 3}), None), AFTERWARDS, there(0)).await;
    assert_eq!((kinds(&writes), replicas), (vec!["scale", "status"], Some(3)));
    assert_eq!(writes[1].1["status"].get("savedReplicas"), None);
    let monday = at("2026-11-30T08:00:00Z").duration_since(at(AFTERWARDS));
    assert_eq!(outcome.unwrap(), Some(Duration::try_from(monday).unwrap()), "not a second before it is due");
}

#[tokio::test]
async fn an_autoscaled_target_is_left_alone() {
    for status in [json!({}), json!({"savedReplicas": 3})] {
        let (_, writes, replicas) =
            pass(schedule(status, None), IN_WINDOW, World { autoscaled: true, ..there(5) }).await;
        assert_eq!((kinds(&writes), replicas), (vec!["status"], Some(5)));
        assert_eq!(writes[0].1["status"]["conditions"][1]["reason"], "Conflict");
    }
}

#[tokio::test]
async fn a_missing_target_is_told_and_looked_for_again() {
    let (outcome, writes, _) = pass(schedule(json!({}), None), IN_WINDOW, World { replicas: None, ..there(0) }).await;
    assert_eq!((outcome.unwrap(), kinds(&writes)), (Some(LOOK), vec!["status"]));
    assert_eq!(writes[0].1["status"]["conditions"][1]["reason"], "TargetMissing");
}

/// The event of that change may have come before, and not every change makes a schedule due.
#[tokio::test]
async fn a_schedule_that_changed_while_its_finalizer_was_written_is_due_again_soon() {
    let mut fresh = schedule(json!({}), None);
    fresh["metadata"]["finalizers"] = json!([]);
    for object in [fresh, schedule(json!({}), Some(IN_WINDOW))] {
        let (outcome, writes, _) = pass(object.clone(), IN_WINDOW, World { is_ahead: true, ..there(3) }).await;
        assert_eq!((outcome.unwrap(), kinds(&writes)), (Some(CHANGED), vec!["s"]));
        let (outcome, writes, _) = pass(object, IN_WINDOW, there(3)).await;
        assert_eq!((outcome.unwrap(), kinds(&writes)), (None, vec!["s"]), "its event makes it due");
    }
}

#[tokio::test]
async fn a_deleted_schedule_restores_and_goes() {
    let object = || schedule(json!({"savedReplicas": 3}), Some(IN_WINDOW));
    let (_, writes, replicas) = pass(object(), IN_WINDOW, there(0)).await;
    assert_eq!((kinds(&writes), replicas), (vec!["scale", "s"], Some(3)));
    assert_eq!(writes[1].1["metadata"]["finalizers"], json!([]));
    let (_, writes, _) = pass(object(), IN_WINDOW, World { replicas: None, ..there(0) }).await;
    assert_eq!(kinds(&writes), ["s"], "there is nothing to restore");
    let refused = || World { refuses: true, ..there(0) };
    let (outcome, writes, _) = pass(object(), "2026-11-23T12:09:59Z", refused()).await;
    assert!(outcome.is_err() && kinds(&writes) == ["scale"], "it is tried again: {writes:?}");
    let (outcome, writes, _) = pass(object(), "2026-11-23T12:10:00Z", refused()).await;
    assert!(outcome.is_ok() && kinds(&writes) == ["scale", "s"], "for so long: {writes:?}");
}

/// The schedule of docs/scaleschedule.md stops the workload in the nights of working days, in either version.
#[test]
fn the_schedule_of_the_page_stops_the_workload_at_night_in_either_version() {
    let examples = crate::kinds::examples(include_str!("../../../docs/scaleschedule.md"));
    let [first, second] = &examples[..] else { panic!() };
    let converted = v1beta1::convert(second.clone(), "v1beta1", "v1alpha1").unwrap();
    assert_eq!(converted["spec"], first["spec"]);
    let schedule: ScaleSchedule = serde_json::from_value(first.clone()).unwrap();
    let valid = validate(&schedule.spec).unwrap();
    let replicas = |now: &str| plan::windows(at(now), &valid).active.map(|active| active.replicas);
    // A Friday in Berlin, an hour ahead of UTC: from 20:00 to 06:00 of the Saturday.
    for (now, expected) in [
        ("2026-11-27T18:59:59Z", None),
        ("2026-11-27T19:00:00Z", Some(0)),
        ("2026-11-28T04:59:59Z", Some(0)),
        ("2026-11-28T05:00:00Z", None),
        ("2026-11-28T20:00:00Z", None),
    ] {
        assert_eq!(replicas(now), expected, "{now}");
    }
}
