//! Makes a replica of kinds that are given in code, in a file, or in both.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use kube::Resource;
use serde_json::{Value, json};

use super::children::{Compose, Front};
use crate::{
    app::{Leasehold, Work},
    config::{self, Errors, Kind, Offer, OnLoss, Timings, code::InCode},
    kinds::compose,
    ops::{metrics::Metrics, status::Status},
    replica::term::Reconciler,
    webhooks::Webhook,
};

/// What the objects of a kind shall have, as a file of templates says it (docs/compose.md). Clones share it.
#[derive(Clone, Debug)]
pub struct Composition(Arc<compose::Composition>);

impl Composition {
    /// Reads a file. `file` is its name as error messages give it.
    ///
    /// ```
    /// let text = "
    /// apiVersion: leasehold.dev/v1alpha1
    /// kind: Composition
    /// children:
    /// - id: settings
    ///   template: {apiVersion: v1, kind: ConfigMap, metadata: {name: \"${parent.metadata.name}\"}}
    /// ";
    /// leasehold::Composition::read("queue.yaml", text)?;
    /// # Ok::<(), leasehold::ConfigErrors>(())
    /// ```
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn read(file: &str, text: &str) -> Result<Self, Errors> {
        Ok(Self(Arc::new(compose::Composition::read(file, text)?)))
    }
}

/// Why there is no replica.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The file, or what is said in code, is wrong.
    #[error("{0}")]
    Configuration(Errors),
    /// The file names a composition that was not given.
    #[error("kind {kind} names the composition {file:?}, which was not given: Builder::composition(\"{file}\", …)")]
    NoComposition {
        /// The kind, as `<Kind>.<group>`.
        kind: String,
        /// The composition, as the file names it.
        file: String,
    },
    /// Two reconcilers were given for one name or one kind.
    #[error("{0} was given twice: remove one")]
    Twice(String),
    /// A webhook was given for a kind that is not configured.
    #[error("a webhook was given for {0}, which is not configured")]
    NoKind(String),
}

/// Makes a [`Leasehold`]. Nothing is read and nothing is asked before [`build`](Self::build).
///
/// A kind is given in code by its Rust type ([`kind`](Self::kind)), or in a file by its name ([`configuration`](Self::configuration)),
/// and no name is given twice: a file that lists a kind of the code has its settings and no `reconciler:`. What a file says goes
/// before what is said in code, so that whoever runs the program can tune it.
#[derive(Default)]
#[must_use]
pub struct Builder {
    file: Option<(String, String)>,
    settings: BTreeMap<&'static str, Value>,
    kinds: Vec<Kind>,
    /// By the name that a file calls them.
    named: BTreeMap<String, Work>,
    /// By the name of the kind.
    in_code: BTreeMap<String, Work>,
    /// By file.
    compositions: BTreeMap<String, Composition>,
    /// By the name of the kind.
    webhooks: BTreeMap<String, Arc<dyn Webhook>>,
    endpoints: Option<SocketAddr>,
    twice: Option<String>,
}

impl Builder {
    /// Reads a configuration: its text, and the name of its file for error messages. config/leasehold.yaml explains every field.
    pub fn configuration(self, file: impl Into<String>, text: impl Into<String>) -> Self {
        Self { file: Some((file.into(), text.into())), ..self }
    }

    /// Labels this installation's Leases. Two installations never have the same in one namespace.
    pub fn instance(self, name: impl Into<String>) -> Self {
        let name: String = name.into();
        self.set("instance", json!(name))
    }

    /// Where the Leases live, if not in the namespace of the replicas.
    pub fn lease_namespace(self, namespace: impl Into<String>) -> Self {
        let namespace: String = namespace.into();
        self.set("leases", json!({"namespace": namespace}))
    }

    /// The four durations of an election; 15 s, 10 s, 2 s and 2 s without this.
    pub fn timings(self, timings: Timings) -> Self {
        let show = config::code::duration;
        let Timings { lease_duration, renew_deadline, retry_period, request_timeout } = timings;
        let leases = json!({
            "duration": show(lease_duration), "renewDeadline": show(renew_deadline),
            "retryPeriod": show(retry_period), "requestTimeout": show(request_timeout),
        });
        self.set("leases", leases)
    }

    /// How long running work may take to finish when a term drains, before it is aborted; 30 s without this.
    pub fn drain_timeout(self, timeout: Duration) -> Self {
        self.set("drainTimeout", json!(config::code::duration(timeout)))
    }

    /// What follows when a term is lost.
    pub fn on_loss(self, on_loss: OnLoss) -> Self {
        self.set("onLoss", json!(config::code::word(on_loss)))
    }

    /// All kinds share one Lease of this name: one replica leads all of them, the others stand by.
    pub fn single_lease(self, name: impl Into<String>) -> Self {
        let name: String = name.into();
        self.set("election", json!({"mode": "Single", "lease": {"name": name}}))
    }

    /// Reconciles a kind, each setting at its default.
    pub fn kind<K: Resource<DynamicType = ()>>(self, reconciler: impl Reconciler) -> Self {
        self.kind_with(Kind::of::<K>(), reconciler)
    }

    /// Reconciles a kind with these settings.
    pub fn kind_with(self, kind: Kind, reconciler: impl Reconciler) -> Self {
        self.in_code(kind, Work::Reconciler(Arc::new(reconciler)))
    }

    /// Gives the objects of a kind the children that `front` says.
    pub fn children<C: Compose>(self, front: C) -> Self {
        self.children_with(Kind::of::<C::Object>(), front)
    }

    /// As [`children`](Self::children), for a kind with these settings.
    pub fn children_with<C: Compose>(self, kind: Kind, front: C) -> Self {
        self.in_code(kind, Work::Front(Arc::new(Front(front))))
    }

    /// Gives the objects of a kind the children of a composition.
    pub fn composed(self, kind: Kind, composition: Composition) -> Self {
        self.in_code(kind, Work::Composition(composition.0))
    }

    /// Gives the reconciler that a file calls `builtin: <name>`.
    pub fn reconciler(mut self, name: impl Into<String>, reconciler: impl Reconciler) -> Self {
        let name = name.into();
        let twice = self.named.insert(name.clone(), Work::Reconciler(Arc::new(reconciler))).is_some();
        self.twice = self.twice.or(twice.then(|| format!("the reconciler {name:?}")));
        self
    }

    /// Gives the composition that a file calls `compose: <file>`.
    pub fn composition(mut self, file: impl Into<String>, composition: Composition) -> Self {
        let file = file.into();
        let twice = self.compositions.insert(file.clone(), composition).is_some();
        self.twice = self.twice.or(twice.then(|| format!("the composition {file:?}")));
        self
    }

    /// Defaults, validates or converts the objects of a kind before they are stored. Webhooks are served over TLS by every replica
    /// while the replica runs, on port 9443; docs/webhooks.md has the Service and the configurations that send requests there.
    pub fn webhook<K: Resource<DynamicType = ()>>(self, webhook: impl Webhook) -> Self {
        let mut this = self.set("webhooks", json!({"enabled": true}));
        let kind = Kind::of::<K>().name();
        let twice = this.webhooks.insert(kind.clone(), Arc::new(webhook)).is_some();
        this.twice = this.twice.or(twice.then(|| format!("the webhook of {kind}")));
        this
    }

    /// Serves `/livez`, `/readyz`, `/metrics` and `/shards` on this address while the replica runs, before anything is asked of
    /// the API server. A program that has an HTTP server anyway asks [`Leasehold::health`] instead.
    pub fn endpoints(self, address: SocketAddr) -> Self {
        Self { endpoints: Some(address), ..self }
    }

    fn set(mut self, field: &'static str, value: Value) -> Self {
        match (self.settings.get_mut(field), value) {
            (Some(Value::Object(there)), Value::Object(more)) => there.extend(more),
            (_, value) => drop(self.settings.insert(field, value)),
        }
        self
    }

    fn in_code(mut self, kind: Kind, work: Work) -> Self {
        let name = kind.name();
        let twice = self.in_code.insert(name.clone(), work).is_some();
        self.twice = self.twice.or(twice.then(|| format!("the kind {name}")));
        self.kinds.push(kind);
        self
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// The first of these: a name given twice, everything that is wrong with the configuration at once, a composition or a
    /// kind that is missing.
    pub fn build(self) -> Result<Leasehold, BuildError> {
        if let Some(twice) = self.twice {
            return Err(BuildError::Twice(twice));
        }
        let code = InCode { settings: self.settings.into_iter().collect(), kinds: self.kinds };
        let of_code: BTreeMap<_, _> = code.kinds.iter().map(|kind| (kind.name(), kind)).collect();
        let named = self.named.keys().map(|name| Offer::from(name.as_str()));
        let in_code = of_code.iter().map(|(name, kind)| Offer {
            name,
            only: Some((kind.group.as_str(), kind.kind.as_str())),
            in_code: true,
        });
        let offers: Vec<_> = named.chain(in_code).collect();
        let file = self.file.as_ref().map(|(file, text)| (file.as_str(), text.as_str()));
        let config = config::code::assemble(file, &code, &offers).map_err(BuildError::Configuration)?;

        let mut composed = BTreeMap::new();
        for kind in &config.kinds {
            let Some(file) = &kind.composition else { continue };
            let Some(composition) = self.compositions.get(file) else {
                return Err(BuildError::NoComposition { kind: kind.name(), file: file.clone() });
            };
            composed.insert(kind.reconciler.clone(), Work::Composition(Arc::clone(&composition.0)));
        }
        let known: BTreeSet<_> = config.kinds.iter().map(Kind::name).collect();
        if let Some(unknown) = self.webhooks.keys().find(|kind| !known.contains(*kind)) {
            return Err(BuildError::NoKind(unknown.clone()));
        }
        let status = Status::default();
        let metrics = Metrics::new(known, status.clone());
        let works = self.named.into_iter().chain(self.in_code).chain(composed);
        Ok(Leasehold::new(config).observed_by(status, metrics).built(works.collect(), self.webhooks, self.endpoints))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, settings, kinds, named, compositions, endpoints, .. } = self;
        let kinds: Vec<_> = kinds.iter().map(Kind::name).collect();
        f.debug_struct("Builder")
            .field("file", &file.as_ref().map(|(file, _)| file))
            .field("settings", settings)
            .field("kinds", &kinds)
            .field("reconcilers", &named.keys())
            .field("compositions", &compositions.keys())
            .field("endpoints", endpoints)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};

    use super::*;
    use crate::{
        front::children::{Composed, Failure, Seen, Type},
        replica::{leadership::Of, term::Term},
    };

    async fn hold(term: Term) -> Result<(), crate::BoxError> {
        term.draining().await;
        Ok(())
    }

    const HEAD: &str = "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\n";

    fn composition() -> Composition {
        let child = "{id: a, template: {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}}";
        let text = format!("apiVersion: leasehold.dev/v1alpha1\nkind: Composition\nchildren: [{child}]\n");
        Composition::read("queue.yaml", &text).unwrap()
    }

    struct Nothing;

    impl Compose for Nothing {
        type Object = ServiceAccount;

        fn types(&self) -> Vec<Type> {
            Vec::new()
        }

        fn compose(&self, _: &ServiceAccount, _: &Seen<'_>) -> Result<Composed, Failure> {
            Ok(Composed::default())
        }
    }

    struct Allows;

    impl Webhook for Allows {}

    #[test]
    fn kinds_of_code_and_of_a_file_make_one_replica() {
        let text = format!(
            "{HEAD}kinds:\n- {{apiVersion: example.com/v1, kind: Widget, reconciler: {{builtin: widgets}}}}\n\
             - {{apiVersion: example.com/v1, kind: Queue, reconciler: {{compose: queue.yaml}}}}\n\
             - {{apiVersion: v1, kind: Secret, weight: 9}}\n"
        );
        let app = Leasehold::builder()
            .configuration("leasehold.yaml", text)
            .instance("mine")
            .lease_namespace("leases")
            .timings(Timings { lease_duration: Duration::from_secs(30), ..Timings::default() })
            .drain_timeout(Duration::from_secs(7))
            .on_loss(OnLoss::Exit)
            .reconciler("widgets", hold)
            .composition("queue.yaml", composition())
            .kind::<ConfigMap>(hold)
            .kind_with(Kind::of::<Secret>().weight(2), hold)
            .children(Nothing)
            .webhook::<ConfigMap>(Allows)
            .build()
            .unwrap();
        let config = app.configuration();
        let names: Vec<_> = config.kinds.iter().map(|kind| (kind.name(), kind.weight)).collect();
        let expected = [
            ("Widget.example.com", 1),
            ("Queue.example.com", 1),
            ("Secret", 9),
            ("ConfigMap", 1),
            ("ServiceAccount", 1),
        ];
        assert_eq!(names, expected.map(|(name, weight)| (name.to_owned(), weight)));
        assert_eq!((config.instance.as_str(), config.lease_namespace.as_deref()), ("mine", Some("leases")));
        assert_eq!(
            (config.timings.lease_duration, config.drain_timeout),
            (Duration::from_secs(30), Duration::from_secs(7))
        );
        assert!(config.on_loss == OnLoss::Exit && config.webhooks.enabled);
        assert!(app.leadership("Queue.example.com").is_some() && app.leadership(Of::Group("x")).is_none());
        assert!(app.missing().is_empty(), "{:?}", app.missing());
    }

    #[test]
    fn a_group_and_one_lease_for_all_are_said_in_code_too() {
        let two = |builder: Builder| builder.kind::<ConfigMap>(hold).kind::<Secret>(hold).build().unwrap();
        let single = two(Leasehold::builder().single_lease("all"));
        assert!(single.configuration().kinds.iter().all(|kind| kind.lease_name == "all"));
        let grouped = Leasehold::builder()
            .kind_with(Kind::of::<ConfigMap>().in_group("g"), hold)
            .kind_with(Kind::of::<Secret>().in_group("g"), hold)
            .build()
            .unwrap();
        assert!(grouped.leadership(Of::Group("g")).is_some());
        assert_eq!(grouped.configuration().shards().len(), 1);
    }

    #[test]
    fn what_is_given_twice_or_not_at_all_is_named() {
        let said = |builder: Builder| builder.build().err().expect("it is wrong").to_string();
        let twice = said(Leasehold::builder().kind::<ConfigMap>(hold).kind::<ConfigMap>(hold));
        assert_eq!(twice, "the kind ConfigMap was given twice: remove one");
        assert!(said(Leasehold::builder().reconciler("a", hold).reconciler("a", hold)).contains("\"a\""));
        assert!(said(Leasehold::builder()).contains("list at least one kind"));
        assert!(said(Leasehold::builder().kind_with(Kind::of::<ConfigMap>().weight(0), hold)).contains("weight"));
        let queue = "kinds: [{apiVersion: example.com/v1, kind: Queue, reconciler: {compose: queue.yaml}}]\n";
        let none = said(Leasehold::builder().configuration("f.yaml", format!("{HEAD}{queue}")));
        assert!(none.contains("Builder::composition(\"queue.yaml\""), "{none}");
        let stray = said(Leasehold::builder().kind::<ConfigMap>(hold).webhook::<Secret>(Allows));
        assert_eq!(stray, "a webhook was given for Secret, which is not configured");
        let unknown = "kinds: [{apiVersion: example.com/v1, kind: Queue, reconciler: {builtin: queues}}]\n";
        let unknown = said(Leasehold::builder().configuration("f.yaml", format!("{HEAD}{unknown}")));
        assert!(unknown.contains("f.yaml:3") && unknown.contains("queues"), "{unknown}");
    }
}
