//! What a pass goes through and writes, whatever the kind.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Client, CustomResource};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{pass::Common, *};
use crate::{
    reconcile::{
        clock::WallClock,
        conditions::{APPLIED, AS_EXPECTED, ConditionStatus, Conditions},
        controller::{Controller, RequeueAfter},
        fake::Fake,
        status::Shard,
        store::Store,
    },
    replica::term::Access,
};

const SOON: RequeueAfter = Some(Duration::from_secs(7));

#[derive(CustomResource, Clone, Debug, Serialize, Deserialize)]
#[kube(group = "example.com", version = "v1", kind = "Probe", namespaced, status = "ProbeStatus", schema = "disabled")]
struct ProbeSpec {
    route: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProbeStatus {
    observed_generation: Option<i64>,
    conditions: Vec<Condition>,
    shard: Option<Shard>,
    total: u32,
}
crate::reconcile::status::reported!(ProbeStatus);

#[derive(Debug, thiserror::Error)]
#[error("failed to {0}")]
struct Broken(&'static str);

/// Takes the route that the object names, and keeps which stages it went through.
#[derive(Default)]
struct Routes(Mutex<Vec<&'static str>>);

impl Routes {
    fn enter(&self, stage: &'static str) {
        self.0.lock().unwrap().push(stage);
    }
}

impl Stages for Routes {
    type Object = Probe;
    type Status = ProbeStatus;
    type Watched = bool;
    type Valid = String;
    type Observed = u32;
    type Plan = u32;
    type Done = (u32, Option<Trouble>);
    type ObserveError = Broken;
    type ApplyError = Broken;

    fn api(client: Client, namespace: &str) -> Api<Probe> {
        Api::namespaced(client, namespace)
    }

    fn needs(&self) -> Vec<Access> {
        vec![Access::new("list", "", "configmaps")]
    }

    fn watch(&self, controller: Controller<Probe>, _: Client) -> (Controller<Probe>, bool) {
        (controller, true)
    }

    fn is_filled(watched: &bool) -> bool {
        *watched
    }

    fn validate(&self, probe: &Probe) -> Result<String, Trouble> {
        self.enter("validate");
        match &*probe.spec.route {
            "invalid" => Err(Trouble::invalid("spec.route: is none")),
            route => Ok(route.to_owned()),
        }
    }

    async fn observe(&self, _: &Pass<Self>, route: &String) -> Result<u32, End<Self::Done, Broken>> {
        self.enter("observe");
        match &**route {
            "blocked" => Err(End::failed(Outcome::Blocked(Trouble::new("Forbidden", "may not")), Broken("read"))),
            "unreadable" => Err(Broken("read").into()),
            "early" => Err(End::unreported(SOON)),
            _ => Ok(2),
        }
    }

    fn plan(&self, _: &String, found: u32) -> u32 {
        self.enter("plan");
        found + 1
    }

    async fn apply(
        &self,
        _: &Pass<Self>,
        route: &String,
        plan: u32,
    ) -> Result<(Self::Done, RequeueAfter), End<Self::Done, Broken>> {
        self.enter("apply");
        match &**route {
            "refused" => Err(End::failed(Outcome::Done((plan, Some(Trouble::new("Half", "of it")))), Broken("write"))),
            _ => Ok(((plan, None), SOON)),
        }
    }

    fn report(_: &Probe, (done, trouble): &Self::Done, status: &mut ProbeStatus, conditions: &mut Conditions<'_>) {
        status.total += done;
        match trouble {
            Some(Trouble { reason, message }) => conditions.set(APPLIED, ConditionStatus::False, reason, message),
            None => conditions.set(APPLIED, ConditionStatus::True, AS_EXPECTED, ""),
        }
    }

    fn carry_over(current: &ProbeStatus) -> ProbeStatus {
        ProbeStatus { total: current.total, ..ProbeStatus::default() }
    }

    async fn finalize(&self, _: &Pass<Self>) -> Result<RequeueAfter, Error<Broken, Broken>> {
        self.enter("finalize");
        Ok(SOON)
    }
}

/// One pass: the stages it went through, how it ended, and the status that it wrote.
async fn pass(
    route: &str,
    filled: bool,
    meta: Value,
    status: Value,
) -> (Vec<&'static str>, Result<RequeueAfter, String>, Option<ProbeStatus>) {
    let mut object = json!({
        "apiVersion": "example.com/v1", "kind": "Probe", "spec": {"route": route}, "status": status,
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "1", "generation": 4},
    });
    object["metadata"].as_object_mut().unwrap().extend(meta.as_object().unwrap().clone());
    let fake = Fake::new(1, |asked| Some((200, asked.body.clone())));
    let stages = Arc::new(Routes::default());
    let common = Common::new(Arc::clone(&stages), Arc::new(WallClock), filled, Store::new(()), fake.term.clone());
    let ended = Pass::new(&common, Arc::new(serde_json::from_value(object).unwrap())).reconcile().await;
    let written =
        fake.asked().into_iter().find(|asked| asked.method == Method::PUT && asked.uri.contains("/ns/probes/p/status"));
    let status = written.map(|asked| serde_json::from_value(asked.body["status"].clone()).unwrap());
    let entered = stages.0.lock().unwrap().clone();
    (entered, ended.map_err(|error| error.to_string()), status)
}

#[tokio::test]
async fn a_pass_ends_at_the_first_stage_that_cannot_go_on_and_reports_what_that_says() {
    let all = &["validate", "observe", "plan", "apply"][..];
    let (read, write) = (|| Err("failed to read".to_owned()), || Err("failed to write".to_owned()));
    for (route, stages, ended, ready) in [
        ("invalid", &all[..1], Ok(None), Some("SpecInvalid")),
        ("blocked", &all[..2], read(), Some("Forbidden")),
        ("unreadable", &all[..2], read(), None),
        ("early", &all[..2], Ok(SOON), None),
        ("refused", all, write(), Some("Half")),
        ("done", all, Ok(SOON), Some("AsExpected")),
    ] {
        let (entered, result, status) = pass(route, true, json!({}), json!(null)).await;
        assert_eq!((&*entered, result), (stages, ended), "{route}");
        let last = status.as_ref().and_then(|status| status.conditions.last());
        assert_eq!(last.map(|condition| &*condition.reason), ready, "{route}");
        assert!(status.is_none_or(|status| status.observed_generation == Some(4) && status.shard.is_some()), "{route}");
    }
}

#[tokio::test]
async fn nothing_is_done_before_the_watches_are_filled_and_a_deleted_object_is_finalized_only() {
    assert_eq!(pass("done", false, json!({}), json!(null)).await, (vec![], Ok(None), None));
    let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"]});
    assert_eq!(pass("done", true, deleted, json!(null)).await, (vec!["finalize"], Ok(SOON), None));
}

#[tokio::test]
async fn a_paused_object_enters_no_stage_and_what_was_said_of_it_stays() {
    let paused = |more: Value| {
        let mut meta = json!({"annotations": {"leasehold.dev/paused": "true"}});
        meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        meta
    };
    let (_, _, before) = pass("done", true, json!({"generation": 3}), json!(null)).await;
    for more in [json!({}), json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"]})] {
        let (entered, ended, status) = pass("done", true, paused(more), json!(before)).await;
        assert_eq!((entered, ended), (vec![], Ok(None)));
        let status = status.unwrap();
        assert_eq!((status.total, status.observed_generation), (3, Some(3)), "an older spec was worked on");
        let last = status.conditions.last().unwrap();
        assert_eq!((&*last.status, &*last.reason), ("Unknown", "Paused"));
        assert_eq!(
            pass("done", true, paused(json!({})), json!(status)).await.2.is_some(),
            last.message.contains("deletion")
        );
    }
}

#[tokio::test]
async fn a_status_keeps_what_the_kind_carries_over_and_is_written_only_if_it_says_something_new() {
    let (_, _, first) = pass("done", true, json!({}), json!(null)).await;
    let (_, _, next) = pass("done", true, json!({}), json!(first)).await;
    assert_eq!((first.unwrap().total, next.unwrap().total), (3, 6));
    let (_, _, invalid) = pass("invalid", true, json!({}), json!({"total": 6})).await;
    assert_eq!(invalid.as_ref().unwrap().total, 6);
    assert_eq!(pass("invalid", true, json!({}), json!(invalid)).await.2, None);
}

#[test]
fn a_kind_may_read_its_objects_and_write_their_status() {
    use crate::replica::term::Reconciler;
    let needs = Staged::new(Routes::default()).needs();
    let expected =
        [("get", "example.com", "probes"), ("update", "example.com", "probes/status"), ("list", "", "configmaps")];
    assert_eq!(needs, expected.map(|(verb, group, resource)| Access::new(verb, group, resource)));
}
