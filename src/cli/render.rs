//! `leasehold render`: the children that a composed kind would make of an object. The unit test of a composition's author.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use leasehold::{
    config::Kind,
    kinds::{
        compose::Composition,
        openapi::{Mistake, Schemas},
    },
    reconcile::children::{Compose as _, Composed, Effort, Failure as NotComposed, Key, Type, View},
};
use serde_json::{Value, json};

use super::{Failure, defaults, load::load, out::out, schemas};

#[derive(Args)]
pub(super) struct Options {
    /// The configuration file, or a folder with a leasehold.yaml
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,
    /// A file with the object, as YAML or JSON
    #[arg(long, value_name = "FILE")]
    parent: PathBuf,
    /// Objects that are there: related ones, and children with the status that expressions ask for
    #[arg(long, value_name = "FILE")]
    related: Vec<PathBuf>,
    /// CRDs, in a file or all of a folder: the object gets their defaults and is held to their schemas, as the API server does
    /// it, and its children are held to those that are there
    #[arg(long, value_name = "PATH")]
    crd: Vec<PathBuf>,
    /// How to print the children
    #[arg(short, long, value_enum, default_value_t = Output::Yaml)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Yaml,
    Json,
}

/// Core types whose objects are in no namespace; offline there is no API server to ask.
const IN_NO_NAMESPACE: [(&str, &str); 18] = [
    ("", "Namespace"),
    ("", "Node"),
    ("", "PersistentVolume"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("apiregistration.k8s.io", "APIService"),
    ("certificates.k8s.io", "CertificateSigningRequest"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"),
    ("networking.k8s.io", "IngressClass"),
    ("node.k8s.io", "RuntimeClass"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("storage.k8s.io", "CSIDriver"),
    ("storage.k8s.io", "StorageClass"),
];

pub(super) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let loaded = load(&options.file).map_err(|bad| Failure::Usage(bad.to_string()))?;
    let file = &options.parent;
    // Others in the file, such as its namespace, are taken for related.
    let is_composed =
        |object: &Value| loaded.config.kinds.iter().any(|kind| kind.composition.is_some() && is_of(kind, object));
    let (parents, mut there): (Vec<_>, Vec<_>) = objects(file)?.into_iter().partition(is_composed);
    let [parent] = &parents[..] else {
        let composed: Vec<_> =
            loaded.config.kinds.iter().filter(|kind| kind.composition.is_some()).map(Kind::name).collect();
        let known = if composed.is_empty() {
            "none is composed".to_owned()
        } else {
            format!("composed are {}", composed.join(", "))
        };
        let message =
            format!("{}: expected one object of a composed kind, found {}; {known}", file.display(), parents.len());
        return Err(Failure::Usage(message));
    };
    let mut parent = parent.clone();
    let definitions = schemas::documents(&options.crd)?;
    let schemas = schemas::of(&definitions, &options.crd)?;
    if !options.crd.is_empty() {
        fill_in(&mut parent, &definitions, &options.crd)?;
        let mistakes = held(&schemas, &parent);
        if !mistakes.is_empty() {
            return Err(Failure::Usage(listed(&file.display().to_string(), &mistakes)));
        }
    }
    let found = loaded.config.kinds.iter().find(|kind| is_of(kind, &parent));
    let (kind, composition) =
        found.and_then(|kind| Some((kind, loaded.composition(kind)?))).context("a composed kind has a composition")?;
    for file in &options.related {
        there.extend(objects(file)?);
    }
    let composed = compose(composition, &parent, there)
        .map_err(|failure| anyhow!("{}: {}: {}", kind.name(), failure.reason, failure.message))?;
    print(&composed, options.output)?;
    for child in &composed.children {
        let mistakes = held(&schemas, &child.object);
        if !mistakes.is_empty() {
            let (_, kind, _, name) = name(&child.object);
            return Err(anyhow!("{}", listed(&format!("{kind} {name}"), &mistakes)).into());
        }
    }
    Ok(if composed.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether an object is of a kind, in whatever version.
fn is_of(kind: &Kind, object: &Value) -> bool {
    let group =
        object["apiVersion"].as_str().and_then(|version| version.split_once('/')).map_or("", |(group, _)| group);
    object["kind"] == kind.kind && group == kind.group
}

/// What is wrong with an object by its schema, if there is one.
fn held(schemas: &Schemas, object: &Value) -> Vec<Mistake> {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let schema = schemas.get(group, version, object["kind"].as_str().unwrap_or_default());
    schema.map(|schema| schema.mistakes(object, "")).unwrap_or_default()
}

fn listed(of: &str, mistakes: &[Mistake]) -> String {
    let lines: Vec<_> = mistakes.iter().map(|Mistake { path, message }| format!("{of}: {path}: {message}")).collect();
    lines.join("\n")
}

/// Fills in the defaults of the object's own CRD.
fn fill_in(object: &mut Value, definitions: &[Value], paths: &[PathBuf]) -> Result<(), Failure> {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let ((group, version), kind) =
        (version.split_once('/').unwrap_or_default(), object["kind"].as_str().unwrap_or_default());
    let schema = definitions.iter().find_map(|crd| defaults::schema(crd, group, kind, version)).cloned();
    let Some(schema) = schema else {
        let shown: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        let message = format!("{}: no CRD of {kind}.{group} with a version {version}", shown.join(", "));
        return Err(Failure::Usage(message));
    };
    defaults::fill(object, &schema);
    Ok(())
}

/// The objects of a file of one or several documents.
fn objects(file: &Path) -> Result<Vec<Value>, Failure> {
    let text = fs::read_to_string(file).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
    let documents: Vec<Value> = serde_yaml::from_multiple(&text)
        .map_err(|error| Failure::Usage(format!("{}: not readable as YAML: {error}", file.display())))?;
    let documents: Vec<Value> = documents.into_iter().filter(|document| !document.is_null()).collect();
    if let Some(odd) = documents.iter().find(|document| document.pointer("/metadata/name").is_none()) {
        let message =
            format!("{}: expected objects with apiVersion, kind and metadata.name, found {odd}", file.display());
        return Err(Failure::Usage(message));
    }
    Ok(documents)
}

type Name = (String, String, Option<String>, String);

fn name(object: &Value) -> Name {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let (version, kind) = (text("/apiVersion").unwrap_or_default(), text("/kind").unwrap_or_default());
    (version, kind, text("/metadata/namespace"), text("/metadata/name").unwrap_or_default())
}

/// Composes until no further child comes, as if each child that was made existed in the cluster.
fn compose(composition: &Composition, parent: &Value, there: Vec<Value>) -> Result<Composed, NotComposed> {
    let mut related = BTreeMap::new();
    for (id, wanted) in composition.related() {
        let matches = |object: &&Value| {
            let (version, kind, namespace, name) = name(object);
            version == wanted.of.api_version()
                && kind == wanted.of.kind
                && (wanted.namespace.is_none() || wanted.namespace == namespace)
                && wanted.name.as_ref().is_none_or(|wanted| *wanted == name)
                && wanted.labels.iter().all(|(key, value)| object["metadata"]["labels"][key] == *value)
        };
        let mut found: Vec<_> = there.iter().filter(matches).cloned().collect();
        found.sort_by_key(name);
        related.insert(id, found.into_iter().map(Arc::new).collect());
    }
    let mut seen: HashMap<Name, Arc<Value>> =
        there.into_iter().map(|object| (name(&object), Arc::new(object))).collect();
    loop {
        let child = |key: &Key| {
            seen.get(&(key.of.api_version(), key.of.kind.clone(), key.namespace.clone(), key.name.clone())).cloned()
        };
        let is_namespaced = |of: &Type| !IN_NO_NAMESPACE.contains(&(&of.group, &of.kind));
        let view = View { parent, child: &child, related: &related, is_namespaced: &is_namespaced };
        let composed = composition.compose(&view, Effort::Full)?.unwrap_or_default();
        let before = seen.len();
        for said in &composed.children {
            seen.entry(name(&said.object)).or_insert_with(|| Arc::new(said.object.clone()));
        }
        if seen.len() == before {
            return Ok(composed);
        }
    }
}

fn print(composed: &Composed, output: Output) -> Result<(), Failure> {
    let mut out = out();
    match output {
        Output::Yaml => {
            for child in &composed.children {
                let yaml = serde_yaml::to_string(&child.object).context("failed to write a child as YAML")?;
                write!(out, "---\n# {}\n{yaml}", child.id)?;
            }
            for waiting in &composed.waiting {
                writeln!(out, "---\n# {} waits {}", waiting.id, waiting.reason)?;
            }
            for failed in &composed.failed {
                writeln!(out, "---\n# failed: {failed}")?;
            }
            if !composed.status.is_empty() {
                let yaml = serde_yaml::to_string(&composed.status).context("failed to write the status as YAML")?;
                let lines: Vec<_> = yaml.lines().map(|line| format!("#   {line}")).collect();
                writeln!(out, "---\n# status:\n{}", lines.join("\n"))?;
            }
        }
        Output::Json => {
            let children: Vec<_> =
                composed.children.iter().map(|child| json!({"id": child.id, "object": child.object})).collect();
            let waiting: Vec<_> = composed.waiting.iter().map(|it| json!({"id": it.id, "reason": it.reason})).collect();
            let document = json!({
                "children": children, "waiting": waiting, "status": composed.status, "failed": composed.failed,
            });
            writeln!(out, "{document:#}")?;
        }
    }
    Ok(())
}
