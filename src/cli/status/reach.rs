//! Reads what there is: Leases, Pods, and what each replica says at `/shards`.
//!
//! A replica is asked through the API server's proxy to its Pod. So whoever asks needs no way into the Pods' network, and
//! may ask by their own right `get` on `pods/proxy`. What cannot be read is named, and the rest is shown.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::ValueEnum;
use futures::StreamExt as _;
use http::{Request, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};
use leasehold::{
    ops::{
        ask::{NoAnswer, ask, read},
        report::Report,
    },
    protocol::lease::{Member, Role},
    replica::{
        pods::{PORT, port, shown},
        problem::describe,
        record::{self, INSTANCE_LABEL, Lease},
    },
};
use tokio::time::{Instant, timeout, timeout_at};

use super::installation::Seen;
use crate::cli::{Failure, client, target::Target};

/// How the replicas are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Via {
    /// Through the API server's proxy, which needs `get` on `pods/proxy`
    ApiServer,
    /// At the addresses of their Pods, from within the cluster's network
    PodAddress,
    /// Not at all: by Leases and Pods alone
    Nothing,
}

/// How long one replica may take to answer, and how long all of them.
const ANSWER: Duration = Duration::from_secs(5);
const ANSWERS: Duration = Duration::from_secs(15);
/// Replicas that are asked at a time, and altogether: anybody who may write Leases can make up more.
const AT_A_TIME: usize = 32;
const ASKED: usize = 500;
/// The most that an answer may come to: those of thousands of kinds are a tenth of it.
const BYTES: usize = 16 << 20;

/// Where status is read from.
pub(super) struct Reach {
    client: Client,
    namespace: String,
    instance: Option<String>,
    via: Via,
}

impl Reach {
    pub(super) async fn open(
        target: &Target,
        namespace: Option<&str>,
        instance: Option<&str>,
        via: Via,
    ) -> Result<Self, Failure> {
        let config = target.config().await?;
        let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_owned);
        Ok(Self { client: client(config).await?, namespace, instance: instance.map(str::to_owned), via })
    }

    /// Reads it all once. `kind`: the replicas are asked for all that they know of this one.
    pub(super) async fn look(&self, looks: &mut Looks, kind: Option<&str>) -> Result<Seen, Failure> {
        let leases = self.leases().await?;
        looks.at(now(), &leases);
        let mut problems = Vec::new();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pods = match timeout(ANSWER, pods.list(&ListParams::default())).await {
            Ok(Ok(pods)) => Some(pods.items),
            Ok(Err(error)) => {
                problems.push(format!("the Pods of namespace {}: {}", self.namespace, describe(&error)));
                None
            }
            Err(_elapsed) => {
                problems.push(format!("the Pods of namespace {}: no answer within 5 s", self.namespace));
                None
            }
        };
        let members: Vec<Member> = leases.iter().filter_map(|lease| record::record(lease)?.member()).collect();
        let asked = asked(&members, pods.as_deref());
        let reports = match self.via {
            Via::Nothing => {
                problems.push("the replicas: --via nothing asks none of them".to_owned());
                BTreeMap::new()
            }
            Via::ApiServer | Via::PodAddress => self.ask(&asked, pods.as_deref(), kind).await,
        };
        Ok(Seen {
            namespace: self.namespace.clone(),
            leases,
            pods,
            reports,
            problems,
            renewed: looks.renewed.clone(),
            silent: looks.silent.clone(),
        })
    }

    /// The Leases of the one installation that is meant.
    async fn leases(&self) -> Result<Vec<Lease>, Failure> {
        let namespace = &self.namespace;
        let instance = self.instance.as_deref();
        let selector = instance.map_or_else(|| INSTANCE_LABEL.to_owned(), |name| format!("{INSTANCE_LABEL}={name}"));
        let leases = record::leases(self.client.clone(), namespace);
        let all = leases.list(&ListParams::default().labels(&selector)).await;
        let all = all.map_err(|error| {
            anyhow!("failed to list the Leases in namespace {namespace}: {}; the Role leasehold-viewer of deploy/ grants it", describe(&error))
        })?;
        let label = |lease: &Lease| lease.metadata.labels.as_ref()?.get(INSTANCE_LABEL).cloned();
        let instances: BTreeSet<_> = all.items.iter().filter_map(label).collect();
        match instances.len() {
            0 => {
                let of = instance.map_or_else(String::new, |name| format!(" {name}"));
                Err(Failure::Usage(format!(
                    "namespace {namespace} has no Leases of an installation{of}; name theirs with --namespace"
                )))
            }
            1 => Ok(all.items),
            _ => {
                let instances: Vec<_> = instances.into_iter().collect();
                Err(Failure::Usage(format!(
                    "namespace {namespace} has several installations, {}; name one with --instance",
                    instances.join(", ")
                )))
            }
        }
    }

    async fn ask(
        &self,
        names: &[String],
        pods: Option<&[Pod]>,
        kind: Option<&str>,
    ) -> BTreeMap<String, Result<Report, String>> {
        // A name that is no kind's becomes no part of a path: all kinds are asked for then.
        let query = kind.filter(|kind| is_kind(kind)).map(|kind| format!("?kind={kind}")).unwrap_or_default();
        let deadline = now() + ANSWERS;
        let one = |name: &String| {
            let pod = pods.and_then(|pods| pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(name)));
            let (name, pod, query) = (name.clone(), pod.cloned(), query.clone());
            async move {
                let asked = timeout(ANSWER, self.ask_one(&name, pod.as_ref(), pods.is_some(), &query));
                let answer = timeout_at(deadline, asked).await;
                let answer = answer.unwrap_or(Ok(Err(anyhow!("no time is left to ask it"))));
                let answer = answer.unwrap_or_else(|_elapsed| Err(anyhow!("no answer within {} s", ANSWER.as_secs())));
                (name, answer.map_err(|error| format!("{error:#}")))
            }
        };
        futures::stream::iter(names.iter().map(one)).buffer_unordered(AT_A_TIME).collect().await
    }

    async fn ask_one(
        &self,
        name: &str,
        pod: Option<&Pod>,
        pods_are_known: bool,
        query: &str,
    ) -> anyhow::Result<Report> {
        if !is_pod_name(name) {
            return Err(anyhow!("that is no name of a Pod"));
        }
        if pods_are_known && pod.is_none() {
            return Err(anyhow!("there is no Pod of this name in the namespace"));
        }
        let namespace = &self.namespace;
        let bytes = match self.via {
            Via::PodAddress => {
                let address = pod.and_then(|pod| shown(pod).address).context("its Pod has no address yet")?;
                ask(address, &format!("/shards{query}"), BYTES).await?
            }
            Via::ApiServer | Via::Nothing => {
                // Without a port the API server takes the first one that the Pod names.
                let port = pod.map(|pod| format!(":{}", port(pod).unwrap_or(PORT))).unwrap_or_default();
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}{port}/proxy/shards{query}");
                let request = Request::get(path).body(kube::client::Body::empty())?;
                read(self.client.send(request).await?, BYTES).await.map_err(granted)?
            }
        };
        serde_json::from_slice(&bytes).context("its answer is no report")
    }
}

/// What grants it, where it is forbidden.
fn granted(error: NoAnswer) -> anyhow::Error {
    match error {
        NoAnswer::Refused { status: StatusCode::FORBIDDEN, message } => {
            anyhow!("{message}; the Role leasehold-viewer of deploy/ grants it")
        }
        _ => error.into(),
    }
}

/// A name from a Lease becomes a part of a path: as Kubernetes has them.
fn is_pod_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || [b'-', b'.'].contains(&byte);
    !name.is_empty() && name.len() <= 253 && name.bytes().all(fits) && name.as_bytes()[0].is_ascii_alphanumeric()
}

/// `<Kind>.<group>`, as the API server has them.
fn is_kind(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || [b'-', b'.'].contains(&byte))
}

/// The Pods to ask: those of the memberships, and those of the same sort that have none.
fn asked(members: &[Member], pods: Option<&[Pod]>) -> Vec<String> {
    let names: BTreeSet<&str> = members.iter().map(|member| member.profile.pod.as_str()).collect();
    let mut asked: BTreeSet<String> = names.iter().take(ASKED).map(|name| (*name).to_owned()).collect();
    let sort = |pod: &Pod| {
        let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        Some((pod.spec.as_ref()?.service_account_name.clone(), owner?.kind.clone()))
    };
    let is_member = |pod: &&Pod| pod.metadata.name.as_deref().is_some_and(|name| names.contains(name));
    let sorts: Vec<_> = pods.into_iter().flatten().filter(is_member).filter_map(sort).collect();
    let is_ours = |pod: &&Pod| {
        let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get("app.kubernetes.io/name"));
        let is_over =
            pod.status.as_ref().and_then(|status| status.phase.as_deref()).is_some_and(|phase| phase == "Succeeded");
        let is_like_members = sort(pod).is_some_and(|sort| sorts.contains(&sort));
        !is_over && (is_like_members || label.is_some_and(|name| name == "leasehold"))
    };
    let others = pods.into_iter().flatten().filter(is_ours).filter_map(|pod| pod.metadata.name.clone());
    for name in others {
        if asked.len() < ASKED {
            asked.insert(name);
        }
    }
    asked.into_iter().collect()
}

/// Which Leases were renewed from one look to the next: by our own clock, from when each version was first seen.
#[derive(Debug, Default)]
pub(super) struct Looks {
    versions: BTreeMap<String, (Option<String>, String, Instant)>,
    renewed: BTreeSet<String>,
    silent: BTreeSet<String>,
}

/// Counts for a Lease that publishes no duration.
const DURATION: Duration = Duration::from_secs(15);

impl Looks {
    fn at(&mut self, now: Instant, leases: &[Lease]) {
        for record in leases.iter().filter_map(record::record).filter(|record| record.role == Role::Shard) {
            let version = (record.holder.clone(), record.version.resource_version.clone());
            let known = self.versions.get(&record.name);
            let is_same_holder = known.is_some_and(|(holder, ..)| *holder == version.0);
            match known {
                Some((holder, resource_version, since)) if (holder, resource_version) == (&version.0, &version.1) => {
                    if holder.is_some() && now >= *since + record.duration.unwrap_or(DURATION) {
                        self.silent.insert(record.name.clone());
                        self.renewed.remove(&record.name);
                    }
                    continue;
                }
                Some(_) if is_same_holder && version.0.is_some() => _ = self.renewed.insert(record.name.clone()),
                _ => _ = self.renewed.remove(&record.name),
            }
            self.silent.remove(&record.name);
            self.versions.insert(record.name, (version.0, version.1, now));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "measures how long was looked, for people")]
pub(super) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn held(version: &str, holder: &str) -> Vec<Lease> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": "w", "namespace": "ns", "uid": "u", "resourceVersion": version,
                "labels": {"leasehold.dev/instance": "i", "leasehold.dev/role": "shard"},
            },
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15},
        });
        vec![serde_json::from_value(lease).unwrap()]
    }

    #[test]
    fn a_renewal_is_seen_and_a_silence_counts_from_when_it_was_first_seen() {
        let (mut looks, began) = (Looks::default(), now());
        let after = |seconds| began + Duration::from_secs(seconds);
        let seen = |looks: &Looks| (looks.renewed.contains("w"), looks.silent.contains("w"));
        looks.at(after(0), &held("1", "a_1"));
        assert_eq!(seen(&looks), (false, false), "a first look tells nothing");
        looks.at(after(2), &held("2", "a_1"));
        assert_eq!(seen(&looks), (true, false));
        looks.at(after(16), &held("2", "a_1"));
        assert_eq!(seen(&looks), (true, false));
        looks.at(after(17), &held("2", "a_1"));
        assert_eq!(seen(&looks), (false, true), "the duration is over");
        looks.at(after(18), &held("3", "b_1"));
        assert_eq!(seen(&looks), (false, false), "another holder has renewed nothing yet");
        looks.at(after(40), &held("4", ""));
        looks.at(after(80), &held("4", ""));
        assert_eq!(seen(&looks), (false, false), "a free Lease is not renewed");
    }

    #[test]
    fn a_name_that_is_no_pods_becomes_no_path() {
        for name in ["a-1", "a.b", "0"] {
            assert!(is_pod_name(name), "{name}");
        }
        for name in ["", "..", "../x", "a/b", "a:80", "a?b", "a%2f", "A", "é", &"x".repeat(300)] {
            assert!(!is_pod_name(name), "{name}");
        }
        assert!(is_kind("Widget.my-group.example.com") && !is_kind("W&kind=x") && !is_kind("W x") && !is_kind("W#"));
    }

    fn pod(name: &str, account: &str, labels: serde_json::Value, ports: serde_json::Value) -> Pod {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true});
        let pod = json!({
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
            "spec": {"serviceAccountName": account, "containers": [{"name": "c", "ports": ports}]},
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn the_pods_of_a_bad_rollout_are_asked_as_well() {
        let profile = leasehold::protocol::membership::Profile { pod: "a".to_owned(), ..Default::default() };
        let identity = "a_1".to_owned();
        let member =
            Member { name: "m".to_owned(), version: Default::default(), identity, duration: None, created: 0, profile };
        let pods = [
            pod("a", "us", json!({}), json!([])),
            pod("crashing", "us", json!({}), json!([])),
            pod("another", "them", json!({}), json!([])),
            pod("labelled", "them", json!({"app.kubernetes.io/name": "leasehold"}), json!([])),
        ];
        assert_eq!(asked(std::slice::from_ref(&member), Some(&pods)), ["a", "crashing", "labelled"]);
        assert_eq!(asked(&[member], None), ["a"]);
        assert_eq!(asked(&[], Some(&pods)), ["labelled"]);
    }
}
