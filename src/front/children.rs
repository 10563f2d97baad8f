//! The children engine for a kind that is written in Rust: the program says which children an object shall have, with
//! types of its own, and the engine does the rest.

use std::{collections::BTreeMap, sync::Arc};

use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::reconcile::children::{
    self, Adopt, Deletion, Desired, Effort, Failure as EngineFailure, Key, Related, Update, View, Waiting,
};

/// Says which children an object shall have.
///
/// The engine creates, changes and deletes them by server-side apply through the client of the term, watches them, owns
/// them, and writes `status.conditions` and the fields of [`Composed::status`]. It asks again after each change of the object
/// or of a child.
///
/// It is asked on the thread of the term, so it does no IO, reads no clock, and returns within milliseconds. For the same object
/// and children it says the same, or children would be written again and again.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
/// use kube::{ResourceExt, api::ObjectMeta};
/// use leasehold::children::{Child, Compose, Composed, Failure, Seen, Type};
///
/// /// Each ServiceAccount gets a ConfigMap of its name.
/// struct Settings;
///
/// impl Compose for Settings {
///     type Object = ServiceAccount;
///
///     fn types(&self) -> Vec<Type> {
///         vec![Type::of::<ConfigMap>()]
///     }
///
///     fn compose(&self, account: &ServiceAccount, _: &Seen<'_>) -> Result<Composed, Failure> {
///         let settings = ConfigMap {
///             metadata: ObjectMeta { name: Some(account.name_any()), ..ObjectMeta::default() },
///             data: Some(BTreeMap::from([("account".to_owned(), account.name_any())])),
///             ..ConfigMap::default()
///         };
///         Ok(Composed::new([Child::new("settings", &settings)?]))
///     }
/// }
///
/// # fn add(app: leasehold::Builder) -> leasehold::Builder {
/// app.children(Settings)
/// # }
/// ```
pub trait Compose: Send + Sync + 'static {
    /// The objects that have children. Their CRD has a status subresource, with `conditions` and what
    /// [`Composed::status`] writes.
    type Object: Resource<DynamicType = ()> + DeserializeOwned;

    /// The types that children can have. The account of the kind needs `get`, `list`, `watch`, `create`, `patch` and `delete` on
    /// them; the kind is not led before it has that.
    fn types(&self) -> Vec<Type>;

    /// What the object shall have. A child that is there and is not named is deleted, once everything else is as it shall be.
    ///
    /// # Errors
    /// If the object says nothing that could be carried out: nothing is written or deleted then, and the status says why.
    fn compose(&self, object: &Self::Object, seen: &Seen<'_>) -> Result<Composed, Failure>;
}

/// A type of children.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Type(Arc<children::Type>);

impl Type {
    /// That of a Rust type.
    #[must_use]
    pub fn of<K: Resource<DynamicType = ()>>() -> Self {
        Self::new(&K::group(&()), &K::version(&()), &K::kind(&()), &K::plural(&()))
    }

    /// By its names; `group` is empty for the core group, `plural` in lower case.
    #[must_use]
    pub fn new(group: &str, version: &str, kind: &str, plural: &str) -> Self {
        let of = children::Type::new(group, version, kind);
        Self(Arc::new(children::Type { plural: plural.to_owned(), ..of }))
    }
}

/// Why nothing can be said of what an object shall have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
#[non_exhaustive]
pub struct Failure {
    /// The reason of the condition: a fixed word in CamelCase.
    pub reason: &'static str,
    /// Its message, for people. No value of a Secret belongs in it.
    pub message: String,
}

impl Failure {
    /// With a reason and a message.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// One child that an object shall have.
#[derive(Clone, Debug)]
#[must_use]
pub struct Child(Desired);

impl Child {
    /// A child: all that the program says of it. It lies in the namespace of its owner unless it names another. `id` is what
    /// messages call it.
    ///
    /// # Errors
    /// If it cannot be written as JSON, or has no name.
    pub fn new<K: Resource<DynamicType = ()> + Serialize>(id: &str, object: &K) -> Result<Self, Failure> {
        let invalid = |why: String| Failure::new("ChildInvalid", format!("{id}: {why}"));
        let mut value = serde_json::to_value(object).map_err(|error| invalid(format!("cannot be written: {error}")))?;
        value["apiVersion"] = K::api_version(&()).into();
        value["kind"] = K::kind(&()).into();
        Self::dynamic(id, &Type::of::<K>(), value)
    }

    /// As [`new`](Self::new), of a type that the program has no Rust type for.
    ///
    /// # Errors
    /// If it has no name.
    pub fn dynamic(id: &str, of: &Type, object: Value) -> Result<Self, Failure> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let Some(name) = text("/metadata/name") else {
            return Err(Failure::new("ChildInvalid", format!("{id}: metadata.name is missing")));
        };
        let key = Key { of: Arc::clone(&of.0), namespace: text("/metadata/namespace"), name };
        Ok(Self(Desired::new(id, key, object)))
    }

    /// It is waited for: the condition `ChildrenReady` says this until it is left out.
    pub fn unready(mut self, reason: impl Into<String>) -> Self {
        self.0.unready = Some(reason.into());
        self
    }

    /// It is not written yet, for this reason, and not taken for one that shall go.
    pub fn held(mut self, reason: impl Into<String>) -> Self {
        self.0.held = Some(reason.into());
        self
    }

    /// It stays, without an owner, when it is not desired any more or its owner goes.
    pub fn kept(mut self) -> Self {
        self.0.care.deletion = Deletion::Keep;
        self
    }

    /// An object of its name that no controller owns becomes the child. Without this, such an object is left alone.
    pub fn adopted(mut self) -> Self {
        self.0.care.adopt = Adopt::IfUnowned;
        self
    }

    /// It is deleted and made anew where the API server does not let it be changed.
    pub fn recreated(mut self) -> Self {
        self.0.care.update = Update::Recreate;
        self
    }
}

/// What an object shall have.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Composed {
    children: Vec<Child>,
    waiting: Vec<Waiting>,
    status: serde_json::Map<String, Value>,
}

impl Composed {
    /// These children, which come into being in this order.
    pub fn new(children: impl IntoIterator<Item = Child>) -> Self {
        Self { children: children.into_iter().collect(), ..Self::default() }
    }

    /// A child cannot be said yet, for this reason. While there is one, nothing is deleted.
    pub fn waiting(mut self, id: &str, reason: impl Into<String>) -> Self {
        self.waiting.push(Waiting { id: id.to_owned(), reason: reason.into() });
        self
    }

    /// A field of the status, beside those of the engine (`observedGeneration`, `conditions`, `shard`).
    pub fn status(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.status.insert(field.to_owned(), value.into());
        self
    }
}

/// The children that are there, as they were last seen.
pub struct Seen<'a> {
    view: &'a View<'a>,
}

impl Seen<'_> {
    /// The child of that name in the owner's namespace; `None` if there is none that is ours, or it is not of that type.
    pub fn child<K: Resource<DynamicType = ()> + DeserializeOwned>(&self, name: &str) -> Option<K> {
        self.child_in(self.namespace(), name)
    }

    /// As [`child`](Self::child), in a namespace, or in none.
    pub fn child_in<K>(&self, namespace: Option<&str>, name: &str) -> Option<K>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let of = Type::of::<K>().0;
        let namespace = namespace.filter(|_| (self.view.is_namespaced)(&of)).map(str::to_owned);
        let there = (self.view.child)(&Key { of, namespace, name: name.to_owned() })?;
        serde_json::from_value(Value::clone(&there)).ok()
    }

    fn namespace(&self) -> Option<&str> {
        self.view.parent.pointer("/metadata/namespace").and_then(Value::as_str)
    }
}

/// The engine's view of a typed front.
pub(crate) struct Front<C>(pub(crate) C);

impl<C: Compose> children::Compose for Front<C> {
    fn types(&self) -> Vec<Arc<children::Type>> {
        self.0.types().into_iter().map(|of| of.0).collect()
    }

    fn related(&self) -> BTreeMap<String, Related> {
        BTreeMap::new()
    }

    fn compose(&self, view: &View<'_>, _: Effort) -> Result<Option<children::Composed>, EngineFailure> {
        let seen = Seen { view };
        let invalid = |reason, message| EngineFailure { reason, message };
        let object = serde_json::from_value(view.parent.clone()).map_err(|error| {
            // The error may quote a value.
            let what = if error.is_data() { "a field has another type than the program expects" } else { "unreadable" };
            invalid("SpecInvalid", format!("{what}: hold the CRD to the Rust type"))
        })?;
        let composed =
            self.0.compose(&object, &seen).map_err(|Failure { reason, message }| invalid(reason, message))?;
        let types = self.0.types();
        let mut children = Vec::new();
        for Child(mut child) in composed.children {
            if !types.iter().any(|of| of.0 == child.key.of) {
                let message = format!("{}: `Compose::types` does not name {}", child.id, child.key.of);
                return Err(invalid("ChildInvalid", message));
            }
            let is_namespaced = (view.is_namespaced)(&child.key.of);
            child.key.namespace = match child.key.namespace.take() {
                _ if !is_namespaced => None,
                None => seen.namespace().map(str::to_owned),
                there => there,
            };
            if is_namespaced {
                let Some(namespace) = &child.key.namespace else {
                    let message = format!("{}: metadata.namespace is missing, and its owner is in none", child.id);
                    return Err(invalid("ChildInvalid", message));
                };
                child.object["metadata"]["namespace"] = namespace.clone().into();
            }
            children.push(child);
        }
        let (waiting, status) = (composed.waiting, composed.status);
        Ok(Some(children::Composed { children, waiting, status, failed: Vec::new() }))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
    use kube::api::ObjectMeta;
    use serde_json::json;

    use super::*;
    use crate::reconcile::children::Compose as _;

    type Say = fn(&ServiceAccount, &Seen<'_>) -> Result<Composed, Failure>;

    struct Says(Say);

    impl Compose for Says {
        type Object = ServiceAccount;

        fn types(&self) -> Vec<Type> {
            vec![Type::of::<ConfigMap>(), Type::of::<Namespace>()]
        }

        fn compose(&self, object: &ServiceAccount, seen: &Seen<'_>) -> Result<Composed, Failure> {
            (self.0)(object, seen)
        }
    }

    fn named<K: Resource<DynamicType = ()> + Default>(name: &str) -> K {
        let mut object = K::default();
        *object.meta_mut() = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        object
    }

    /// What an account in the namespace `ns` gets.
    fn composed(say: Say) -> Result<children::Composed, EngineFailure> {
        let parent = json!({"metadata": {"name": "a", "namespace": "ns"}});
        let child = |key: &Key| {
            let is_it = key.name == "there" && key.namespace.as_deref() == Some("ns");
            is_it.then(|| Arc::new(json!({"metadata": {"name": "there"}, "data": {"x": "y"}})))
        };
        let view = View {
            parent: &parent,
            child: &child,
            related: &BTreeMap::new(),
            is_namespaced: &|of| of.kind != "Namespace",
        };
        Front(Says(say)).compose(&view, Effort::Brief).map(Option::unwrap)
    }

    #[test]
    fn a_child_lies_with_its_owner_and_says_what_the_program_said() {
        let said = composed(|_, seen| {
            let there: ConfigMap = seen.child("there").unwrap();
            assert!(seen.child::<ConfigMap>("other").is_none());
            let children = [
                Child::new("settings", &named::<ConfigMap>("a"))?.kept().recreated(),
                Child::new("space", &named::<Namespace>("b"))?.unready("it is not active"),
            ];
            Ok(Composed::new(children).waiting("later", "more").status("x", there.data.unwrap()["x"].clone()))
        })
        .unwrap();
        let keys: Vec<_> = said.children.iter().map(|child| child.key.to_string()).collect();
        assert_eq!(keys, ["ConfigMap ns/a", "Namespace b"]);
        let settings = &said.children[0];
        assert_eq!(settings.object["metadata"]["namespace"], "ns");
        assert_eq!((&settings.object["apiVersion"], &settings.object["kind"]), (&json!("v1"), &json!("ConfigMap")));
        assert_eq!((settings.care.deletion, settings.care.update), (Deletion::Keep, Update::Recreate));
        assert_eq!(said.children[1].unready.as_deref(), Some("it is not active"));
        assert_eq!((said.waiting.len(), &said.status["x"]), (1, &json!("y")));
    }

    #[test]
    fn what_no_child_can_be_is_the_failure_of_its_object() {
        let failed = |say: Say| composed(say).unwrap_err().message;
        assert!(failed(|_, _| Ok(Composed::new([Child::new("x", &ConfigMap::default())?]))).contains("metadata.name"));
        let odd = failed(|_, _| Ok(Composed::new([Child::new("x", &named::<ServiceAccount>("a"))?])));
        assert!(odd.contains("Compose::types"), "{odd}");
        assert_eq!(failed(|_, _| Err(Failure::new("TooSmall", "grow"))), "grow");
    }
}
