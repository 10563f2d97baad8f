//! Which children go before which: those that depend on others before those. Pure.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Composed, Deletion, Desired, Key, Order, plan::Owner};
use crate::reconcile::apply::{CHILD, DELETION, KEEP};

/// A child that is there and goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Going {
    pub(super) key: Key,
    pub(super) uid: String,
    /// It stays, and is released.
    pub(super) is_kept: bool,
    /// It is being deleted already.
    pub(super) is_terminating: bool,
    /// What the file called it when it was last written.
    pub(super) id: Option<String>,
}

impl Going {
    pub(super) fn new(key: Key, meta: &ObjectMeta) -> Self {
        let annotation = |name: &str| meta.annotations.as_ref()?.get(name).map(String::as_str);
        Self {
            key,
            uid: meta.uid.clone().unwrap_or_default(),
            is_kept: annotation(DELETION) == Some(KEEP),
            is_terminating: meta.deletion_timestamp.is_some(),
            id: annotation(CHILD).map(str::to_owned),
        }
    }
}

/// Those whose turn it is: no other one that goes depends on them. What is released is so at once, dependents first, and
/// holds nothing up. What lies in a namespace that goes as well goes with that.
pub(super) fn turn(order: &Order, mut going: Vec<Going>) -> Vec<Going> {
    let depends = |one: &Going, on: &Going| {
        let on = on.id.as_ref();
        let all = one.id.as_ref().and_then(|id| order.depends.get(id));
        all.zip(on).is_some_and(|(all, on)| all.contains(on))
    };
    let depth = |one: &Going| one.id.as_ref().and_then(|id| order.depends.get(id)).map_or(0, BTreeSet::len);
    going.sort_by_key(|one| std::cmp::Reverse(depth(one)));
    let spaces: BTreeSet<&str> =
        going.iter().filter(|one| is_space(&one.key) && !one.is_kept).map(|one| one.key.name.as_str()).collect();
    let goes_along = |one: &Going| !one.is_kept && one.key.namespace.as_deref().is_some_and(|it| spaces.contains(it));
    let waits = |one: &Going| {
        let holds = |other: &&Going| !other.is_kept && !goes_along(other) && depends(other, one);
        !one.is_kept && going.iter().any(|other| holds(&other))
    };
    let is_due = |one: &&Going| !one.is_terminating && !goes_along(one) && !waits(one);
    going.iter().filter(is_due).cloned().collect()
}

/// Whether the object must be held until its children are gone: where the garbage collector does not follow, what is kept,
/// and what goes in an order.
pub(super) fn is_to_be_held(order: &Order, composed: &Composed, owner: &Owner) -> bool {
    let is_kept = |child: &Desired| child.care.deletion == Deletion::Keep;
    let spaces: BTreeSet<&str> = composed
        .children
        .iter()
        .filter(|it| is_space(&it.key) && !is_kept(it))
        .map(|it| it.key.name.as_str())
        .collect();
    let goes_along = |child: &Desired| child.key.namespace.as_deref().is_some_and(|it| spaces.contains(it));
    let is_ordered = |child: &Desired| order.explicit.contains(&child.id) && !goes_along(child);
    composed.children.iter().any(|child| !owner.can_own(&child.key) || is_kept(child) || is_ordered(child))
}

fn is_space(key: &Key) -> bool {
    key.of.group.is_empty() && key.of.kind == "Namespace"
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::reconcile::children::Type;

    /// `c` depends on `b`, and that on `a`; `alone` on nothing.
    fn order() -> Order {
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
        let depends = [("a", &[][..]), ("b", &["a"]), ("c", &["a", "b"]), ("alone", &[])];
        let depends: BTreeMap<_, _> = depends.map(|(id, on)| (id.to_owned(), set(on))).into();
        Order { depends, explicit: set(&["b", "c"]) }
    }

    fn going(id: &str) -> Going {
        let of = Arc::new(Type::new("", "v1", "ConfigMap"));
        let key = Key { of, namespace: Some("ns".to_owned()), name: id.to_owned() };
        Going { key, uid: id.to_owned(), is_kept: false, is_terminating: false, id: Some(id.to_owned()) }
    }

    fn due(all: Vec<Going>) -> Vec<String> {
        turn(&order(), all).into_iter().map(|one| one.key.name).collect()
    }

    #[test]
    fn what_depends_on_others_goes_first_and_they_wait_until_it_is_gone() {
        let all = || ["a", "alone", "b", "c"].map(going).to_vec();
        assert_eq!(due(all()), ["c", "alone"]);
        let mut terminating = all();
        terminating[3].is_terminating = true;
        assert_eq!(due(terminating), ["alone"], "it is not gone yet");
        assert_eq!(due(["a", "b"].map(going).to_vec()), ["b"]);
        assert_eq!(due(["a", "c"].map(going).to_vec()), ["c"], "what stood between them is gone");
        assert_eq!(due(vec![going("a")]), ["a"]);
        let unknown = Going { id: None, ..going("x") };
        assert_eq!(due(vec![going("a"), unknown]), ["a", "x"], "what bears no id holds nothing up");
    }

    #[test]
    fn what_is_kept_is_released_at_once_dependents_first_and_holds_nothing_up() {
        let kept = |id| Going { is_kept: true, ..going(id) };
        assert_eq!(due(vec![going("a"), kept("b"), kept("c")]), ["c", "b", "a"]);
        assert_eq!(due(vec![kept("a"), going("c")]), ["c", "a"]);
    }

    #[test]
    fn what_lies_in_a_namespace_that_goes_goes_with_it() {
        let space = |is_kept| {
            let key = Key { of: Arc::new(Type::new("", "v1", "Namespace")), namespace: None, name: "ns".to_owned() };
            Going { key, is_kept, ..going("a") }
        };
        assert_eq!(due(vec![space(false), going("b"), going("c")]), ["ns"]);
        assert_eq!(
            due(vec![space(true), going("b"), going("c")]),
            ["c", "ns"],
            "a namespace that stays takes nothing along"
        );
    }
}
