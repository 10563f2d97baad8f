//! A kind whose objects have children: the program says which, with its own types, and the engine creates, changes, watches,
//! owns and deletes them, and writes the conditions.
//!
//! Each `Site` gets a ConfigMap with its page, and a Service.
//!
//! ```console
//! cargo run --example children -- crd | kubectl apply -f -
//! POD_NAME=me POD_NAMESPACE=default cargo run --example children -- 127.0.0.1:8080
//! ```
//!
//! A file of settings may come before the address.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ConfigMap, Service, ServicePort, ServiceSpec},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{CustomResource, CustomResourceExt, ResourceExt, api::ObjectMeta};
use leasehold::{
    BoxError, Leasehold, Replica,
    children::{Child, Compose, Composed, Failure, Seen, Type},
    observe::Shard,
    shutdown_signals,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A site.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(group = "examples.leasehold.dev", version = "v1", kind = "Site", namespaced, status = "SiteStatus")]
struct SiteSpec {
    title: String,
    #[serde(default)]
    port: Option<u16>,
}

/// What the engine reports, and the address.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct SiteStatus {
    observed_generation: Option<i64>,
    #[schemars(schema_with = "conditions")]
    conditions: Vec<Condition>,
    shard: Option<Shard>,
    address: Option<String>,
}

/// The Rust type of a condition has no schema of its own.
fn conditions(_: &mut SchemaGenerator) -> Schema {
    let text = || json!({"type": "string"});
    let properties = json!({
        "type": text(), "status": text(), "reason": text(), "message": text(),
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "observedGeneration": {"type": "integer", "format": "int64"},
    });
    json_schema!({"type": "array", "items": {"type": "object", "properties": properties}})
}

struct Sites;

impl Compose for Sites {
    type Object = Site;

    fn types(&self) -> Vec<Type> {
        vec![Type::of::<ConfigMap>(), Type::of::<Service>()]
    }

    fn compose(&self, site: &Site, seen: &Seen<'_>) -> Result<Composed, Failure> {
        if site.spec.title.is_empty() {
            return Err(Failure::new("NoTitle", "spec.title is empty: write what the page is called"));
        }
        let name = site.name_any();
        let metadata = || ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let page = ConfigMap {
            metadata: metadata(),
            data: Some(BTreeMap::from([("index.html".to_owned(), format!("<h1>{}</h1>", site.spec.title))])),
            ..ConfigMap::default()
        };
        let port = ServicePort { port: site.spec.port.unwrap_or(80).into(), ..ServicePort::default() };
        let service = Service {
            metadata: metadata(),
            spec: Some(ServiceSpec {
                ports: Some(vec![port]),
                selector: Some(BTreeMap::from([("site".to_owned(), name.clone())])),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        };
        let mut serving = Child::new("service", &service)?;
        let address = seen.child::<Service>(&name).and_then(|there| there.spec?.cluster_ip);
        if address.is_none() {
            serving = serving.unready("it has no address yet");
        }
        Ok(Composed::new([Child::new("page", &page)?, serving]).status("address", address))
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (file, address) = match arguments.as_slice() {
        [verb] if verb == "crd" => {
            serde_json::to_writer(std::io::stdout(), &Site::crd())?;
            return Ok(());
        }
        [address] => (None, address),
        [file, address] => (Some(file), address),
        _ => return Err("usage: children crd | children [SETTINGS] HOST:PORT".into()),
    };
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let mut app = Leasehold::builder().instance("sites").children(Sites).endpoints(address.parse()?);
    if let Some(file) = file {
        app = app.configuration(file, std::fs::read_to_string(file)?);
    }
    Ok(app.build()?.run(kube::Config::infer().await?, Replica::from_env()?, shutdown_signals()?).await?)
}
