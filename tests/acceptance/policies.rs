//! Each condition of the shipped policies is what refuses something, and what lets something through: `policies.yaml` lists
//! requests of our accounts with the validations that refuse them, and each change of a condition changes an answer.
//!
//! The API server is asked about all changed policies at once: each says in the audit log what it would answer, and refuses
//! nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams},
    core::GroupVersionKind,
};
use leasehold_cluster::{AuditEvent, Cluster, eventually};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    mutants::{self, Mutant},
    shipped::NAMESPACE,
    stage::{PATIENCE, tell},
};

const ADMISSION: &str = "admissionregistration.k8s.io/v1";
const POLICY: &str = "ValidatingAdmissionPolicy";
const BINDING: &str = "ValidatingAdmissionPolicyBinding";
const PREFIX: &str = "leasehold-";
/// A policy about everything: a request without its word was answered before admission.
const EVERYTHING: &str = "everything";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// What is there before.
    there: Vec<Value>,
    requests: Vec<Request>,
    /// Changes that make no difference, and why.
    equivalent: Vec<Equivalent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// The user; one of our accounts by its name alone.
    by: String,
    /// Method and path. `CONNECT` is a POST that cannot be tried without being done.
    to: String,
    #[serde(default)]
    body: Value,
    /// The validations that refuse it, as `policy/index`.
    #[serde(default)]
    refused: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Equivalent {
    policy: String,
    /// What changes begin with.
    changes: Vec<String>,
    #[serde(rename = "why")]
    _why: String,
}

impl Request {
    fn name(&self) -> String {
        format!("{}: {} {}", self.by, self.to, self.body)
    }

    fn user(&self) -> String {
        if self.by.contains(':') { self.by.clone() } else { format!("system:serviceaccount:{NAMESPACE}:{}", self.by) }
    }

    /// Status and message of the API server.
    async fn ask(&self, client: &Client, id: &str) -> Result<(u16, String)> {
        let (method, path) = self.to.split_once(' ').context("method and path")?;
        let and = if path.contains('?') { '&' } else { '?' };
        let (method, path) = match method {
            "CONNECT" => ("POST", path.to_owned()),
            _ => (method, format!("{path}{and}dryRun=All")),
        };
        let content = match (method, &self.body) {
            ("PATCH", Value::Array(_)) => "application/json-patch+json",
            ("PATCH", _) => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = if self.body.is_null() { Vec::new() } else { serde_json::to_vec(&self.body)? };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .header("impersonate-user", self.user())
            .header("audit-id", id)
            .body(body)?;
        match client.request::<Value>(request).await {
            Ok(_) => Ok((200, String::new())),
            Err(kube::Error::Api(status)) => Ok((status.code, status.message.clone())),
            Err(error) => Err(error).with_context(|| self.name()),
        }
    }
}

/// A policy as it is judged: it refuses nothing, and says in the audit log what each validation answers.
struct Judged {
    name: String,
    spec: Value,
}

impl Judged {
    fn of(name: String, spec: &Value) -> Self {
        let said = |(index, validation): (usize, &Value)| {
            let expression = validation["expression"].as_str().unwrap_or_default();
            json!({"key": format!("v{index}"), "valueExpression": format!("({expression}) ? 'allowed' : 'refused'")})
        };
        let all = spec["validations"].as_array().into_iter().flatten().enumerate().map(said);
        let matched = json!({"key": "matched", "valueExpression": "'yes'"});
        let mut spec = spec.clone();
        spec["auditAnnotations"] = [matched].into_iter().chain(all).collect();
        spec["validations"] = json!([]);
        // An expression that fails refuses, and says nothing.
        spec["failurePolicy"] = json!("Ignore");
        Self { name, spec }
    }

    async fn install(&self, client: &Client) -> Result<()> {
        let metadata = json!({"name": self.name});
        let binding = json!({"policyName": self.name, "validationActions": ["Audit"]});
        for (kind, spec) in [("ValidatingAdmissionPolicy", &self.spec), ("ValidatingAdmissionPolicyBinding", &binding)]
        {
            let object: DynamicObject = serde_json::from_value(
                json!({"apiVersion": ADMISSION, "kind": kind, "metadata": metadata, "spec": spec}),
            )?;
            let created = admission(client, kind).create(&PostParams::default(), &object).await;
            created.with_context(|| self.name.clone())?;
        }
        Ok(())
    }

    /// The validations that refuse, by what was said.
    fn refused(&self, said: &BTreeMap<String, String>) -> BTreeSet<usize> {
        let word = |key: &str| said.get(&format!("{}/{key}", self.name)).map(String::as_str);
        let count = self.spec["auditAnnotations"].as_array().map_or(0, Vec::len) - 1;
        let refuses = |index: &usize| word(&format!("v{index}")) != Some("allowed");
        if word("matched").is_some() { (0..count).filter(refuses).collect() } else { BTreeSet::new() }
    }
}

fn admission(client: &Client, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
    Api::all_with(client.clone(), &ApiResource::from_gvk(&kind))
}

fn shipped_policies() -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for file in ["accounts.yaml", "hosts.yaml"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policies").join(file))?;
        all.extend(serde_yaml::from_multiple::<Value>(&text)?);
    }
    all.retain(|object| object["kind"] == POLICY);
    Ok(all)
}

fn short(policy: &str) -> &str {
    policy.strip_prefix(PREFIX).unwrap_or(policy)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_condition_of_the_policies_refuses_something_or_lets_it_through() -> Result<()> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/acceptance/policies.yaml"))?;
    let table: Table = serde_yaml::from_str(&text)?;
    let cluster = Cluster::start().await?;
    let client = cluster.client()?;
    set(&cluster, &table).await?;

    let policies = shipped_policies()?;
    let name = |policy: &Value| policy["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let shipped: Vec<_> = policies.iter().map(|it| Judged::of(name(it), &it["spec"])).collect();
    let changed: Vec<Mutant> = policies.iter().flat_map(mutants::of).collect();
    tell(&format!("{} policies, {} changes of them", shipped.len(), changed.len()));
    let numbered = changed.iter().enumerate();
    let judged: Vec<_> = numbered.map(|(number, it)| Judged::of(format!("changed-{number}"), &it.spec)).collect();
    let all = shipped.iter().chain(&judged).map(|it| it.install(&client));
    stream::iter(all).buffer_unordered(8).try_collect::<Vec<_>>().await?;
    // The API server takes new policies all at once; who comes last tells that they are there.
    everything().install(&client).await?;
    let probe = &table.requests[0];
    let mut looks = 0;
    eventually(
        "the policies are judged by",
        PATIENCE * 5,
        || {
            looks += 1;
            let id = format!("probe-{looks}");
            let (client, cluster) = (&client, &cluster);
            async move {
                probe.ask(client, &id).await?;
                said(cluster, &id)
            }
        },
        |said| said.contains_key(&format!("{EVERYTHING}/matched")),
    )
    .await?;

    let mut words = Vec::new();
    let mut wrong = Vec::new();
    for (number, request) in table.requests.iter().enumerate() {
        let id = format!("request-{number}");
        let (code, message) = request.ask(&client, &id).await?;
        let said = eventually(
            "the request is in the log",
            PATIENCE,
            || async { said(&cluster, &id) },
            |said| !said.is_empty(),
        )
        .await?;
        if !said.contains_key(&format!("{EVERYTHING}/matched")) {
            wrong.push(format!("{}\n  was not judged: {code} {message}", request.name()));
        }
        let refused = |it: &Judged| {
            it.refused(&said).into_iter().map(|index| format!("{}/{index}", short(&it.name))).collect::<Vec<_>>()
        };
        let refused: BTreeSet<_> = shipped.iter().flat_map(refused).collect();
        if refused != request.refused {
            wrong.push(format!("{}\n  expected {:?}, got {refused:?}", request.name(), request.refused));
        }
        words.push(said);
    }
    ensure!(wrong.is_empty(), "{} requests are not answered as expected:\n{}", wrong.len(), wrong.join("\n"));

    every_validation_is_met(&policies, &table)?;
    no_change_goes_unnoticed(&table, &shipped, &changed, &judged, &words)?;
    the_shipped_ones_refuse(&cluster, &client, &policies, &table).await
}

/// Namespaces and objects, and everything granted to our accounts, so that nothing but a policy refuses.
async fn set(cluster: &Cluster, table: &Table) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    cluster
        .kubectl(&[
            "apply",
            "-f",
            &root.join("crds").display().to_string(),
            "-f",
            &root.join("crds/webhooks").display().to_string(),
        ])
        .await?;
    let crds = ["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"];
    // One without conditions yet is an error to kubectl.
    eventually("the definitions are established", PATIENCE, || cluster.kubectl(&crds), |_| true).await?;
    let there: Vec<_> = table.there.iter().map(|object| format!("---\n{object}\n")).collect();
    let apply = || async { cluster.apply(&there.concat()).await };
    // A new kind is served a moment after its definition is established.
    eventually("everything is there", PATIENCE * 5, apply, |_| true).await?;
    Ok(())
}

/// What matches each request, and says so.
fn everything() -> Judged {
    let rule = json!({
        "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"], "scope": "*",
        "operations": ["CREATE", "UPDATE", "DELETE", "CONNECT"],
    });
    let spec = json!({"matchConstraints": {"resourceRules": [rule]}, "validations": []});
    Judged::of(EVERYTHING.to_owned(), &spec)
}

/// What admission says of a request; nothing as long as that is not in the log.
fn said(cluster: &Cluster, id: &str) -> Result<BTreeMap<String, String>> {
    let all = cluster.audit()?;
    let of = |event: &&Arc<AuditEvent>| event.id == id;
    Ok(all.iter().rev().find(of).map(|event| event.annotations.clone()).unwrap_or_default())
}

/// Each validation refuses a request of the table.
fn every_validation_is_met(policies: &[Value], table: &Table) -> Result<()> {
    let met: BTreeSet<_> = table.requests.iter().flat_map(|request| &request.refused).collect();
    for policy in policies {
        let name = short(policy["metadata"]["name"].as_str().unwrap_or_default());
        for index in 0..policy["spec"]["validations"].as_array().map_or(0, Vec::len) {
            let validation = format!("{name}/{index}");
            ensure!(met.contains(&validation), "{validation} refuses no request of the table");
        }
    }
    Ok(())
}

/// Each change answers one request in another way than what is shipped.
fn no_change_goes_unnoticed(
    table: &Table,
    shipped: &[Judged],
    changed: &[Mutant],
    judged: &[Judged],
    words: &[BTreeMap<String, String>],
) -> Result<()> {
    let (mut unnoticed, mut excused) = (Vec::new(), BTreeSet::new());
    for (mutant, changed) in changed.iter().zip(judged) {
        let original = shipped.iter().find(|it| it.name == mutant.policy).context("what it was")?;
        if words.iter().any(|said| original.refused(said) != changed.refused(said)) {
            continue;
        }
        let is_of = |it: &&Equivalent| it.policy == short(&mutant.policy) || it.policy == "*";
        let excuse = {
            table.equivalent.iter().filter(is_of).flat_map(|it| it.changes.iter().map(|change| (&it.policy, change)))
        }
        .find(|(_, change)| mutant.change.starts_with(change.as_str()));
        match excuse {
            Some(excuse) => drop(excused.insert(excuse)),
            None => unnoticed.push(format!("{} {}", short(&mutant.policy), mutant.change)),
        }
    }
    ensure!(unnoticed.is_empty(), "{} changes go unnoticed:\n{}", unnoticed.len(), unnoticed.join("\n"));
    for equivalent in &table.equivalent {
        for change in &equivalent.changes {
            ensure!(excused.contains(&(&equivalent.policy, change)), "{change} of {} is noticed", equivalent.policy);
        }
    }
    Ok(())
}

/// The manifests themselves refuse the same requests, with the words of one of those validations.
async fn the_shipped_ones_refuse(cluster: &Cluster, client: &Client, policies: &[Value], table: &Table) -> Result<()> {
    for kind in [BINDING, POLICY] {
        admission(client, kind).delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policies").display().to_string();
    cluster.kubectl(&["apply", "-k", &folder]).await?;
    for request in &table.requests {
        let words = |validation: &String| {
            let (name, index) = validation.split_once('/')?;
            let policy = policies.iter().find(|it| it["metadata"]["name"] == format!("{PREFIX}{name}"))?;
            let index: usize = index.parse().ok()?;
            let message = policy["spec"]["validations"][index]["messageExpression"].as_str()?;
            // The longest text of the expression.
            message.split('\'').skip(1).step_by(2).max_by_key(|text| text.len()).map(str::to_owned)
        };
        let words: Vec<_> = request.refused.iter().filter_map(words).collect();
        let is_so = |(code, message): &(u16, String)| match &words[..] {
            [] => *code != 403,
            words => *code == 403 && words.iter().any(|words| message.contains(words.as_str())),
        };
        let what = format!("{} is answered by {:?}", request.name(), request.refused);
        eventually(&what, PATIENCE, || request.ask(client, "shipped"), is_so).await?;
    }
    Ok(())
}
