//! Whether the API server asks our webhook about every object of a kind before it stores the object. Pure.
//!
//! The ValidatingWebhookConfiguration says so, and this reads it as the API server does. What is not known here, a field or an
//! expression, counts as a gap: it may leave objects out.

use serde_json::Value;

use crate::config::Kind;

/// Where reviews that accept or refuse are answered.
const PATH: &str = "/validate";

/// The expressions of `matchConditions` that leave out only what changes nothing of what is done, as the shipped configurations
/// have them.
const SPEC_CHANGES: &str = "request.operation == 'CREATE' || object.spec != oldObject.spec";
const WHAT_IS_DONE_CHANGES: &str = "request.operation == 'CREATE' || object.spec != oldObject.spec \
                                    || object.metadata.?labels != oldObject.metadata.?labels \
                                    || object.metadata.?annotations != oldObject.metadata.?annotations";

/// All fields of a webhook of a ValidatingWebhookConfiguration that are understood.
pub const FIELDS: [&str; 11] = [
    "name",
    "clientConfig",
    "rules",
    "failurePolicy",
    "matchPolicy",
    "namespaceSelector",
    "objectSelector",
    "matchConditions",
    "sideEffects",
    "timeoutSeconds",
    "admissionReviewVersions",
];
/// Those of its rules.
const RULE_FIELDS: [&str; 5] = ["apiGroups", "apiVersions", "resources", "operations", "scope"];

/// A kind whose authors are to be asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// `<Kind>.<group>`, as in the log's `kind`.
    pub kind: String,
    /// API group; empty for the core group.
    pub group: String,
    /// The version that the kind is led in, which the API server serves.
    pub version: String,
    /// Resource in the plural.
    pub plural: String,
    /// A composition may go by labels and annotations of an object, and not by its spec alone.
    pub composed: bool,
}

impl Checked {
    /// A kind of the configuration, with its resource in the plural.
    pub fn new(kind: &Kind, plural: impl Into<String>) -> Self {
        Self {
            kind: kind.name(),
            group: kind.group.clone(),
            version: kind.version.clone(),
            plural: plural.into(),
            composed: kind.composition.is_some(),
        }
    }
}

/// Whether the configuration of that name, as found, has the API server ask the Service about every object of a kind. The
/// Service has the name of the configuration.
///
/// # Errors
/// Where the first gap is, and what to do.
pub fn judge(found: Option<&Value>, name: &str, namespace: &str, kind: &Checked) -> Result<(), String> {
    let of = format!("ValidatingWebhookConfiguration {name}");
    let Some(found) = found else {
        return Err(format!("there is no {of}: apply overlays/webhooks as a whole"));
    };
    let is_ours = |webhook: &&Value| names(&webhook["clientConfig"], name, namespace);
    let ours: Vec<_> = items(&found["webhooks"]).filter(is_ours).collect();
    if ours.is_empty() {
        return Err(format!(
            "no webhook of {of} has the Service {namespace}/{name} in clientConfig.service: apply overlays/webhooks anew, or \
             write it there"
        ));
    }
    let mut gaps = Vec::new();
    for webhook in ours {
        let rules: Vec<_> = items(&webhook["rules"]).filter(|rule| is_about(rule, kind)).collect();
        if rules.is_empty() {
            continue;
        }
        match asks(webhook, kind).and_then(|()| covers(rules, &webhook["matchPolicy"], kind)) {
            Ok(()) => return Ok(()),
            Err(gap) => gaps.push((webhook, gap)),
        }
    }
    Err(match gaps.first() {
        Some((webhook, gap)) => format!("{of}, webhook {}: {gap}", webhook["name"].as_str().unwrap_or_default()),
        None => {
            let of_group = if kind.group.is_empty() { "the core group".to_owned() } else { kind.group.clone() };
            format!("no rule in {of} has the resource {} of {of_group}: add it to a rule of it", kind.plural)
        }
    })
}

/// Whether a webhook's `clientConfig` names this Service.
pub(super) fn names(client: &Value, service: &str, namespace: &str) -> bool {
    client["service"]["name"] == service && client["service"]["namespace"] == namespace
}

/// What the webhook says besides its rules leaves out no object.
fn asks(webhook: &Value, kind: &Checked) -> Result<(), String> {
    if let Some(field) = unknown(webhook, &FIELDS) {
        return Err(format!("{field}: this version of leasehold does not know the field; take it out"));
    }
    if webhook["clientConfig"]["service"]["path"] != PATH {
        return Err(format!("clientConfig.service.path: write {PATH}"));
    }
    if webhook["clientConfig"]["caBundle"].as_str().is_none_or(str::is_empty) {
        return Err("clientConfig.caBundle: is empty; the leader of the certificate fills it in, or the issuer that \
                    webhooks.certificate names: look into the log of that one if it stays so"
            .to_owned());
    }
    if webhook["failurePolicy"] != "Fail" {
        return Err(
            "failurePolicy: write Fail, for the API server stores objects unasked otherwise while no replica answers"
                .to_owned(),
        );
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if !is_empty(&webhook[field]) {
            return Err(format!("{field}: leaves objects out; take it out"));
        }
    }
    let known: &[&str] = if kind.composed { &[WHAT_IS_DONE_CHANGES] } else { &[SPEC_CHANGES, WHAT_IS_DONE_CHANGES] };
    for condition in items(&webhook["matchConditions"]) {
        let expression = condition["expression"].as_str().unwrap_or_default();
        // A line may be broken anywhere; in no expression that is known a text has spaces.
        let expression = expression.split_whitespace().collect::<Vec<_>>().join(" ");
        if !known.contains(&expression.as_str()) {
            let name = condition["name"].as_str().unwrap_or_default();
            return Err(format!(
                "matchConditions, {name}: the expression may leave objects out; write that of escalation.leasehold.dev in \
                 deploy/webhooks/objects/configurations.yaml"
            ));
        }
    }
    Ok(())
}

/// The rules, which are about the resource, are about every creation and update of it in any version.
fn covers(mut rules: Vec<&Value>, policy: &Value, kind: &Checked) -> Result<(), String> {
    if let Some(field) = rules.iter().find_map(|rule| unknown(rule, &RULE_FIELDS)) {
        return Err(format!("rules, {field}: this version of leasehold does not know the field; take it out"));
    }
    // With Equivalent the API server converts an object of any version to one that the rule names.
    let is_any = policy == "Equivalent";
    let version = kind.version.as_str();
    rules.retain(|rule| has(&rule["apiVersions"], "*") || (is_any && has(&rule["apiVersions"], version)));
    if rules.is_empty() {
        return Err(format!(
            "rules, apiVersions: objects of other versions are left out; write {version} there, and matchPolicy: Equivalent"
        ));
    }
    rules.retain(|rule| rule["scope"].is_null() || rule["scope"] == "*");
    if rules.is_empty() {
        return Err("rules, scope: write \"*\"".to_owned());
    }
    for operation in ["CREATE", "UPDATE"] {
        if !rules.iter().any(|rule| has(&rule["operations"], operation) || has(&rule["operations"], "*")) {
            return Err(format!("rules, operations: {operation} is missing; add it"));
        }
    }
    Ok(())
}

/// Whether a rule has the resource itself, and not only what is under it.
fn is_about(rule: &Value, kind: &Checked) -> bool {
    let is_named = |text: &str| {
        let (resource, below) = text.split_once('/').unwrap_or((text, "*"));
        (resource == "*" || resource == kind.plural) && below == "*"
    };
    let of_group = has(&rule["apiGroups"], &kind.group) || has(&rule["apiGroups"], "*");
    of_group && items(&rule["resources"]).filter_map(Value::as_str).any(is_named)
}

/// The first field that is not among those that are known.
fn unknown<'a>(value: &'a Value, known: &[&str]) -> Option<&'a str> {
    value.as_object()?.keys().map(String::as_str).find(|field| !known.contains(field))
}

/// A selector without any requirement selects everything.
fn is_empty(selector: &Value) -> bool {
    match selector {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.values().all(is_empty),
        _ => false,
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn has(list: &Value, text: &str) -> bool {
    items(list).any(|item| item == text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NAME: &str = "leasehold-webhooks";
    const NAMESPACE: &str = "leasehold-system";

    /// The shipped configuration, as the leader of the certificate completes it and the API server fills in its defaults.
    fn shipped() -> Value {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path.join("deploy/webhooks/objects/configurations.yaml")).unwrap();
        let all: Vec<Value> = serde_yaml::from_multiple(&text).unwrap();
        let mut found = all.into_iter().find(|it| it["kind"] == "ValidatingWebhookConfiguration").unwrap();
        for webhook in found["webhooks"].as_array_mut().unwrap() {
            webhook["clientConfig"]["caBundle"] = json!("Q0E=");
            webhook["namespaceSelector"] = json!({});
            webhook["objectSelector"] = json!({});
        }
        found
    }

    fn kind(name: &str, plural: &str, composed: bool) -> Checked {
        let of = Kind::new("leasehold.dev", "v1alpha1", name);
        Checked { composed, ..Checked::new(&of, plural) }
    }

    fn judged(found: &Value, kind: &Checked) -> Result<(), String> {
        judge(Some(found), NAME, NAMESPACE, kind)
    }

    #[test]
    fn the_shipped_configuration_covers_every_shipped_kind_that_is_checked() {
        for (name, plural, composed) in [
            ("Propagation", "propagations", false),
            ("ExpiryPolicy", "expirypolicies", false),
            ("ScaleSchedule", "scaleschedules", false),
            ("WebApp", "webapps", true),
        ] {
            assert_eq!(judged(&shipped(), &kind(name, plural, composed)), Ok(()), "{name}");
        }
        let wrong = judged(&shipped(), &kind("Widget", "widgets", true)).unwrap_err();
        assert_eq!(
            wrong,
            "no rule in ValidatingWebhookConfiguration leasehold-webhooks has the resource widgets of leasehold.dev: add it to \
             a rule of it"
        );
    }

    #[test]
    fn each_gap_is_told_with_its_webhook_and_field() {
        let no = Value::Null;
        for (at, value, says) in [
            ("/clientConfig/service/path", json!("/mutate"), "clientConfig.service.path: write /validate"),
            ("/clientConfig/service/path", no.clone(), "clientConfig.service.path: write /validate"),
            ("/clientConfig/caBundle", no.clone(), "clientConfig.caBundle: is empty"),
            ("/clientConfig/caBundle", json!(""), "clientConfig.caBundle: is empty"),
            ("/failurePolicy", json!("Ignore"), "failurePolicy: write Fail"),
            ("/failurePolicy", no.clone(), "failurePolicy: write Fail"),
            ("/namespaceSelector", json!({"matchLabels": {"a": "b"}}), "namespaceSelector: leaves objects out"),
            (
                "/namespaceSelector",
                json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}),
                "namespaceSelector: leaves objects out",
            ),
            ("/objectSelector", json!({"matchLabels": {"a": "b"}}), "objectSelector: leaves objects out"),
            ("/matchConditions/0/expression", json!("true"), "matchConditions, what-is-done-changes: the expression"),
            ("/matchConditions/0/expression", json!(format!("{SPEC_CHANGES} && x")), "matchConditions, what-is-done"),
            ("/matchConditions/0/expression", no.clone(), "matchConditions, what-is-done-changes: the expression"),
            ("/matchPolicy", json!("Exact"), "rules, apiVersions: objects of other versions are left out"),
            ("/rules/0/apiVersions", json!(["v9"]), "rules, apiVersions: objects of other versions are left out"),
            ("/rules/0/operations", json!(["CREATE"]), "rules, operations: UPDATE is missing"),
            ("/rules/0/operations", json!(["UPDATE", "DELETE"]), "rules, operations: CREATE is missing"),
            ("/rules/0/scope", json!("Cluster"), "rules, scope: write \"*\""),
            ("/somethingNew", json!("x"), "somethingNew: this version of leasehold does not know the field"),
            ("/rules/0/somethingNew", json!("x"), "rules, somethingNew: this version of leasehold does not know"),
        ] {
            let mut found = shipped();
            let webhook = &mut found["webhooks"][1];
            let (parent, field) = at.rsplit_once('/').unwrap();
            webhook.pointer_mut(parent).unwrap()[field] = value.clone();
            let wrong = judged(&found, &kind("Propagation", "propagations", false)).expect_err(at);
            let expected = format!("ValidatingWebhookConfiguration {NAME}, webhook escalation.leasehold.dev: {says}");
            assert!(wrong.starts_with(&expected), "{at} {value}: {wrong}");
        }
    }

    #[test]
    fn what_is_not_ours_or_not_about_the_kind_covers_nothing() {
        let kind = kind("Propagation", "propagations", false);
        let wrong = judge(None, NAME, NAMESPACE, &kind).unwrap_err();
        assert_eq!(
            wrong,
            "there is no ValidatingWebhookConfiguration leasehold-webhooks: apply overlays/webhooks as a whole"
        );
        for client in [
            json!({"service": {"name": NAME, "namespace": "other", "path": "/validate"}, "caBundle": "Q0E="}),
            json!({"service": {"name": "other", "namespace": NAMESPACE, "path": "/validate"}, "caBundle": "Q0E="}),
            json!({"url": "https://leasehold-webhooks.leasehold-system.svc/validate", "caBundle": "Q0E="}),
        ] {
            let mut found = shipped();
            for webhook in found["webhooks"].as_array_mut().unwrap() {
                webhook["clientConfig"] = client.clone();
            }
            let wrong = judged(&found, &kind).unwrap_err();
            assert!(wrong.contains("has the Service leasehold-system/leasehold-webhooks"), "{wrong}");
        }
        for (field, value) in [
            ("apiGroups", json!(["example.com"])),
            ("resources", json!(["tenants", "propagations/status"])),
            ("resources", json!([])),
            ("resources", json!(["*/status"])),
        ] {
            let mut found = shipped();
            found["webhooks"][1]["rules"][0][field] = value.clone();
            let wrong = judged(&found, &kind).unwrap_err();
            assert!(wrong.starts_with("no rule in"), "{field} {value}: {wrong}");
        }
        for odd in [json!({}), json!({"webhooks": 1}), json!({"webhooks": [1, null, {"clientConfig": []}]})] {
            assert!(judged(&odd, &kind).is_err(), "{odd}");
        }
    }

    #[test]
    fn what_asks_about_more_or_in_other_words_covers_as_well() {
        let of = kind("Propagation", "propagations", false);
        for (field, value) in [
            ("apiGroups", json!(["*"])),
            ("apiVersions", json!(["*"])),
            ("apiVersions", json!(["v1", "v1alpha1"])),
            ("resources", json!(["*"])),
            ("resources", json!(["*/*"])),
            ("resources", json!(["propagations/*"])),
            ("operations", json!(["*"])),
            ("operations", json!(["DELETE", "UPDATE", "CREATE"])),
            ("scope", Value::Null),
        ] {
            let mut found = shipped();
            found["webhooks"][1]["rules"][0][field] = value.clone();
            assert_eq!(judged(&found, &of), Ok(()), "{field} {value}");
        }
        let mut found = shipped();
        let webhook = &mut found["webhooks"][1];
        webhook["matchPolicy"] = json!("Exact");
        webhook["rules"][0]["apiVersions"] = json!(["*"]);
        webhook["namespaceSelector"] = json!({"matchLabels": {}, "matchExpressions": []});
        webhook["matchConditions"] = Value::Null;
        // Operations may be divided among rules, and one webhook that has all is enough.
        let mut rule = webhook["rules"][0].clone();
        rule["operations"] = json!(["UPDATE"]);
        webhook["rules"][0]["operations"] = json!(["CREATE"]);
        webhook["rules"].as_array_mut().unwrap().push(rule);
        let mut other = webhook.clone();
        other["failurePolicy"] = json!("Ignore");
        found["webhooks"].as_array_mut().unwrap().insert(0, other);
        assert_eq!(judged(&found, &of), Ok(()));
    }

    #[test]
    fn a_change_of_labels_is_to_be_asked_about_where_a_composition_may_go_by_them() {
        let mut found = shipped();
        found["webhooks"][1]["matchConditions"][0]["expression"] =
            json!("request.operation == 'CREATE'\n  || object.spec != oldObject.spec");
        assert_eq!(judged(&found, &kind("Propagation", "propagations", false)), Ok(()));
        let wrong = judged(&found, &kind("WebApp", "webapps", true)).unwrap_err();
        assert!(wrong.contains("matchConditions, what-is-done-changes"), "{wrong}");
    }
}
