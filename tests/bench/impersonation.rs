//! What it costs that a kind acts as an account of its own: the same write by impersonation, as the account that the process
//! has anyway, and with a token of the kind's account; one after another, so that the machine is the same for each. And what the
//! policies of `deploy/` cost those whom they are not about.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use leasehold::replica::connections::{Account, Bounds, Connections};
use serde_json::json;

use crate::{
    field::Field,
    report::{Report, say},
};

const GROUP: &str = "a write (server-side apply of a ConfigMap), one kind's account";
const NAMESPACE: &str = "impersonation";
/// Connections are open and everything is cached after as many.
const WARM_UP: usize = 200;
/// Writes at a time, for the throughput.
const AT_ONCE: usize = 16;

/// Who writes: what the table calls it, and its client.
type Writer = (&'static str, Client);

/// Measures `trials` times, each with this many writes of each sort.
///
/// # Errors
/// When a write is refused.
pub(crate) async fn measure(field: &Field, trials: usize, writes: usize, report: &mut Report) -> Result<()> {
    field.cluster.apply(RIGHTS).await?;
    let writers = writers(field).await?;
    for (name, client) in &writers {
        for number in 0..WARM_UP {
            write(client, name, number).await?;
        }
    }
    compare(&writers, trials, writes, "", report).await?;
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/policies").display().to_string();
    field.cluster.kubectl(&["apply", "-k", &policies]).await?;
    // The API server compiles them within a second or two.
    tokio::time::sleep(Duration::from_secs(5)).await;
    compare(&writers, trials, writes, ", with deploy/policies", report).await?;
    field.cluster.kubectl(&["delete", "-k", &policies]).await?;
    field.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await?;
    Ok(())
}

async fn compare(writers: &[Writer], trials: usize, writes: usize, with: &str, report: &mut Report) -> Result<()> {
    let mut figures = vec![(Vec::new(), Vec::new(), Vec::new()); writers.len()];
    for trial in 0..trials {
        let mut took = vec![Vec::new(); writers.len()];
        for number in 0..writes {
            // Each is as often the first, the second and the third.
            for turn in 0..writers.len() {
                let who = (turn + number) % writers.len();
                let (name, client) = &writers[who];
                took[who].push(write(client, name, trial * writes + number).await?.as_secs_f64() * 1000.0);
            }
        }
        for ((half, most, _), mut took) in figures.iter_mut().zip(took) {
            took.sort_by(f64::total_cmp);
            half.push(took[took.len() / 2]);
            most.push(took[took.len() * 99 / 100]);
        }
        for turn in 0..writers.len() {
            let who = (turn + trial) % writers.len();
            let (name, client) = &writers[who];
            let began = instant();
            // Some seconds of them: a pause of the API server's for its garbage is a part of each.
            let many = writes * 4;
            let each = (0..many).map(|number| write_one_of_many(client, name, trial, number));
            stream::iter(each).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
            figures[who].2.push(f64::from(u32::try_from(many)?) / began.elapsed().as_secs_f64());
        }
        say(&format!("impersonation{with}: trial {}", trial + 1));
    }
    for ((name, _), (half, most, rate)) in writers.iter().zip(figures) {
        report.add(GROUP, name, format!("latency, median{with}"), "ms", half);
        report.add(GROUP, name, format!("latency, 99 of 100{with}"), "ms", most);
        report.add(GROUP, name, format!("throughput, {AT_ONCE} at a time{with}"), "1/s", rate);
    }
    Ok(())
}

/// The clients are those of the product, which differ in what they say of themselves only.
async fn writers(field: &Field) -> Result<Vec<Writer>> {
    let connections = |account: &'static str| async move {
        let kubeconfig = field.cluster.service_account_kubeconfig(NAMESPACE, account).await?;
        let (kubeconfig, plain) = (Kubeconfig::read_from(kubeconfig)?, KubeConfigOptions::default());
        let config = Config::from_custom_kubeconfig(kubeconfig, &plain).await?;
        Connections::load(config, Bounds::default()).await.context("failed to make a client")
    };
    let (replica, worker) = (connections("replica").await?, connections("worker").await?);
    let account = Account { namespace: NAMESPACE.to_owned(), name: "worker".to_owned() };
    Ok(vec![("own", replica.client()), ("acting", replica.client_as(Some(&account))), ("token", worker.client())])
}

async fn write(client: &Client, name: &str, number: usize) -> Result<Duration> {
    apply(client, &format!("{name}-0"), number).await
}

async fn write_one_of_many(client: &Client, name: &str, trial: usize, number: usize) -> Result<Duration> {
    apply(client, &format!("{name}-{}", 1 + number % AT_ONCE), trial * 1_000_000 + number).await
}

async fn apply(client: &Client, name: &str, number: usize) -> Result<Duration> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"number": number.to_string(), "filler": "x".repeat(1000)},
    });
    let began = instant();
    maps.patch(name, &PatchParams::apply("bench").force(), &Patch::Apply(&map)).await?;
    Ok(began.elapsed())
}

#[expect(clippy::disallowed_methods, reason = "what is measured is time")]
fn instant() -> Instant {
    Instant::now()
}

const RIGHTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: impersonation}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: replica, namespace: impersonation}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: worker, namespace: impersonation}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: writes, namespace: impersonation}
rules:
- {apiGroups: [''], resources: [configmaps], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: writes, namespace: impersonation}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: writes}
subjects:
- {kind: ServiceAccount, name: replica, namespace: impersonation}
- {kind: ServiceAccount, name: worker, namespace: impersonation}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: acts, namespace: impersonation}
rules:
- {apiGroups: [''], resources: [serviceaccounts], resourceNames: [worker], verbs: [impersonate]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: acts, namespace: impersonation}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: acts}
subjects:
- {kind: ServiceAccount, name: replica, namespace: impersonation}
";
