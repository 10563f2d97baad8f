//! What a composition says, held to the schemas of the types that it is about: fields that are not there, and plain values that
//! cannot stand where they do. Pure.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::{
    cel::{Expression, Name},
    composition::{Child, Composition, Deletes},
    template::{Part, Template},
};
use crate::{
    kinds::openapi::{Field, Mistake, Schema, Schemas, absent, below},
    reconcile::children::Type,
};

impl Composition {
    /// What is wrong with it by the schemas that are there; `of` is the kind that it is of. What has no schema is not looked at.
    pub fn held_to(&self, schemas: &Schemas, of: &Type) -> Vec<Mistake> {
        let mut held = Held { composition: self, schemas, parent: schemas.of(of), found: Vec::new() };
        for child in &self.children {
            held.child(child);
        }
        let status = held.parent.and_then(|parent| match parent.field("status") {
            Field::Known(schema) => Some(schema),
            Field::Free | Field::Absent(_) => None,
        });
        let seen = |name: &Name| held.shown(name, None);
        let mut found = Vec::new();
        hold(&self.status, status, "status", &seen, &mut found);
        if let Some(admission) = &self.admission {
            if let Some(defaults) = &admission.defaults {
                // They are a part of an object: what else must be there is its author's to say.
                hold_part(defaults, held.parent, "admission.defaults", &seen, &mut found);
            }
            for (number, rule) in admission.rules.iter().enumerate() {
                let path = format!("admission.rules[{number}]");
                expression(&rule.rule, &format!("{path}.rule"), &seen, &mut found);
                hold(&rule.message, None, &format!("{path}.message"), &seen, &mut found);
            }
            for lookup in &admission.lookups {
                for (field, template) in [("namespace", lookup.namespace.as_ref()), ("name", Some(&lookup.name))] {
                    if let Some(template) = template {
                        hold(template, None, &format!("admission.lookups.{}.{field}", lookup.id), &seen, &mut found);
                    }
                }
            }
        }
        held.found.append(&mut found);
        let mut once = BTreeSet::new();
        held.found.retain(|mistake| once.insert(mistake.clone()));
        held.found
    }

    /// The types that it is held to the schemas of, besides its own: those of its children.
    pub fn held_types(&self) -> BTreeSet<Type> {
        self.children.iter().map(|child| Type::clone(&child.of)).collect()
    }
}

struct Held<'h> {
    composition: &'h Composition,
    schemas: &'h Schemas,
    parent: Option<Schema<'h>>,
    found: Vec<Mistake>,
}

/// What an expression is shown of names.
type Seen<'a, 'h> = &'a dyn Fn(&Name) -> Option<Schema<'h>>;

impl<'h> Held<'h> {
    /// The schema of what stands behind a name. A child with a `forEach` is a list, and what is related is.
    fn shown(&self, name: &Name, item: Option<Schema<'h>>) -> Option<Schema<'h>> {
        match name {
            Name::Parent | Name::Old => self.parent,
            Name::Each => item,
            Name::Child(id) | Name::Maybe(id) => {
                let child = self.composition.children.iter().find(|child| child.id == *id && child.for_each.is_none());
                self.schemas.of(&child?.of)
            }
            Name::Index | Name::Myself | Name::Related(_) | Name::User => None,
        }
    }

    fn child(&mut self, child: &Child) {
        let mut found = Vec::new();
        let schema = self.schemas.of(&child.of);
        let outer = |name: &Name| self.shown(name, None);
        for (number, condition) in child.include_when.iter().enumerate() {
            expression(condition, &format!("{}.includeWhen[{number}]", child.id), &outer, &mut found);
        }
        let list = child
            .for_each
            .as_ref()
            .map(|(list, _)| expression(list, &format!("{}.forEach", child.id), &outer, &mut found));
        let item = list.flatten().and_then(|list| list.items());
        let inner = |name: &Name| self.shown(name, item);
        hold(&child.template, schema, &format!("{}.template", child.id), &inner, &mut found);
        if let Some(renew) = child.generates.as_ref().and_then(|generates| generates.renew.as_ref()) {
            hold(renew, None, &format!("{}.renew", child.id), &inner, &mut found);
        }
        if let Deletes::Said(deletion) = &child.deletion {
            expression(deletion, &format!("{}.deletion", child.id), &inner, &mut found);
        }
        let ready = |name: &Name| if *name == Name::Myself { schema } else { self.shown(name, item) };
        for (number, condition) in child.ready_when.iter().enumerate() {
            expression(condition, &format!("{}.readyWhen[{number}]", child.id), &ready, &mut found);
        }
        self.found.append(&mut found);
    }
}

fn expression<'h>(
    expression: &Expression,
    path: &str,
    seen: Seen<'_, 'h>,
    found: &mut Vec<Mistake>,
) -> Option<Schema<'h>> {
    let (mistakes, schema) = expression.held(seen);
    found.extend(mistakes.into_iter().map(|message| Mistake { path: path.to_owned(), message }));
    schema
}

/// Holds a whole value to its schema.
fn hold<'h>(template: &Template, schema: Option<Schema<'h>>, path: &str, seen: Seen<'_, 'h>, found: &mut Vec<Mistake>) {
    if let (Template::Map(fields), Some(schema)) = (template, schema) {
        let has = |name: &str| {
            fields.iter().any(|(field, value)| field == name && !matches!(value, Template::Plain(Json::Null)))
        };
        for name in schema.required().filter(|name| !has(name)) {
            found.push(Mistake { path: below(path, name), message: "missing".to_owned() });
        }
    }
    hold_part(template, schema, path, seen, found);
}

/// Holds what may be a part of a mapping to its schema.
fn hold_part<'h>(
    template: &Template,
    schema: Option<Schema<'h>>,
    path: &str,
    seen: Seen<'_, 'h>,
    found: &mut Vec<Mistake>,
) {
    let refused = |sort: &str| schema.and_then(|schema| schema.refuses(sort));
    match template {
        // It is left out.
        Template::Plain(Json::Null) => {}
        Template::Plain(value) => found.extend(schema.into_iter().flat_map(|schema| schema.mistakes(value, path))),
        Template::Whole(of) => _ = expression(of, path, seen, found),
        Template::Text(parts) => {
            found.extend(refused("string").map(|message| Mistake { path: path.to_owned(), message }));
            for part in parts {
                if let Part::Value(of) = part {
                    expression(of, path, seen, found);
                }
            }
        }
        Template::List(items) => {
            found.extend(refused("array").map(|message| Mistake { path: path.to_owned(), message }));
            let schema = schema.and_then(|schema| schema.items());
            for (number, item) in items.iter().enumerate() {
                hold(item, schema, &format!("{path}[{number}]"), seen, found);
            }
        }
        Template::Map(fields) => {
            found.extend(refused("object").map(|message| Mistake { path: path.to_owned(), message }));
            for (name, value) in fields {
                let path = below(path, name);
                let field = schema.map_or(Field::Free, |schema| schema.field(name));
                let schema = match field {
                    Field::Known(schema) => Some(schema),
                    Field::Free => None,
                    Field::Absent(meant) => {
                        found.push(Mistake { path: path.clone(), message: absent(meant) });
                        None
                    }
                };
                hold(value, schema, &path, seen, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schemas() -> Schemas {
        let mut schemas = Schemas::default();
        let crd = json!({"kind": "CustomResourceDefinition", "spec": {
            "group": "example.com", "names": {"kind": "Widget"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {
                    "serviceAccount": {"type": "string"}, "replicas": {"type": "integer"},
                    "ports": {"type": "array", "items": {"type": "object", "properties": {"number": {"type": "integer"}}}},
                    "labels": {"type": "object", "additionalProperties": {"type": "object", "properties": {"value": {"type": "string"}}}},
                }},
                "status": {"type": "object", "properties": {"ready": {"type": "integer"}}},
            }}}}],
        }});
        schemas.add(crd);
        schemas.add(json!({"components": {"schemas": {"Deployment": {
            "type": "object", "x-kubernetes-group-version-kind": [{"group": "apps", "version": "v1", "kind": "Deployment"}],
            "properties": {
                "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
                "spec": {"type": "object", "required": ["selector"], "properties": {
                    "replicas": {"type": "integer"}, "selector": {"type": "object"}, "paused": {"type": "boolean"},
                }},
                "status": {"type": "object", "properties": {"availableReplicas": {"type": "integer"}}},
            },
        }}}}));
        schemas
    }

    fn said(template: &str, more: &str) -> Vec<String> {
        let name = if more.contains("forEach") { "x${index}" } else { "x" };
        let text = format!(
            "apiVersion: leasehold.dev/v1alpha1\nkind: Composition\nchildren:\n- id: web\n  template:\n    apiVersion: apps/v1\n    \
             kind: Deployment\n    metadata: {{name: '{name}'}}\n    spec: {template}\n{more}"
        );
        let composition = Composition::read("x.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
        let all = composition.held_to(&schemas(), &Type::new("example.com", "v1", "Widget"));
        all.into_iter().map(|it| format!("{}: {}", it.path, it.message)).collect()
    }

    #[test]
    fn fields_that_no_schema_has_are_found_in_templates_and_expressions() {
        let none: [&str; 0] = [];
        let good = "{selector: {a: '${parent.spec.serviceAccount}'}, replicas: '${parent.spec.ports.filter(it, it.number > 1).size()}', \
                    paused: '${parent.spec.labels[parent.metadata.name].value == parent.metadata.labels.x}'}";
        assert_eq!(
            said(
                good,
                "  readyWhen: ['${self.status.availableReplicas > 0}']\nstatus: {ready: '${children.web.spec.replicas}'}\n"
            ),
            none
        );
        for (template, more, expected) in [
            (
                "{selector: {}, replica: 1}",
                "",
                "web.template.spec.replica: the schema has no such field; did you mean `replicas`?",
            ),
            ("{replicas: 1}", "", "web.template.spec.selector: missing"),
            ("{selector: {}, replicas: two}", "", "web.template.spec.replicas: expected a whole number, found text"),
            (
                "{selector: {}, replicas: '${parent.spec.replicas}0'}",
                "",
                "web.template.spec.replicas: expected a whole number, found text",
            ),
            ("{selector: []}", "", "web.template.spec.selector: expected a mapping, found a list"),
            (
                "{selector: {a: '${parent.spec.serviceAcount}'}}",
                "",
                "web.template.spec.selector.a: parent.spec.serviceAcount: the schema has no such field; did you mean `serviceAccount`?",
            ),
            (
                "{selector: {a: '${has(parent.spec.zzz)}'}}",
                "",
                "web.template.spec.selector.a: parent.spec.zzz: the schema has no such field",
            ),
            (
                "{selector: {a: '${parent.spec.ports.exists(it, it.nummber == 1)}'}}",
                "",
                "web.template.spec.selector.a: ….nummber: the schema has no such field; did you mean `number`?",
            ),
            (
                "{selector: {a: '${parent.spec.labels.x.valu}'}}",
                "",
                "web.template.spec.selector.a: parent.spec.labels.x.valu: the schema has no such field; did you mean `value`?",
            ),
            (
                "{selector: {a: '${parent.?spec.?replica.orValue(1)}'}}",
                "",
                "web.template.spec.selector.a: parent.spec.replica: the schema has no such field; did you mean `replicas`?",
            ),
            (
                "{selector: {}}",
                "  includeWhen: ['${parent.spec.replica > 1}']\n",
                "web.includeWhen[0]: parent.spec.replica: the schema has no such field; did you mean `replicas`?",
            ),
            (
                "{selector: {}}",
                "  readyWhen: ['${self.status.available > 0}']\n",
                "web.readyWhen[0]: self.status.available: the schema has no such field; did you mean `availableReplicas`?",
            ),
            (
                "{selector: {a: '${each.nr}'}}",
                "  forEach: '${parent.spec.ports}'\n",
                "web.template.spec.selector.a: each.nr: the schema has no such field",
            ),
            (
                "{selector: {}}",
                "status: {redy: 1}\n",
                "status.redy: the schema has no such field; did you mean `ready`?",
            ),
            (
                "{selector: {}}",
                "status: {ready: '${children.web.spec.replica}'}\n",
                "status.ready: children.web.spec.replica: the schema has no such field; did you mean `replicas`?",
            ),
        ] {
            assert_eq!(said(template, more), [expected], "{template} {more}");
        }
    }

    #[test]
    fn what_has_no_schema_may_be_anything() {
        let text = "apiVersion: leasehold.dev/v1alpha1\nkind: Composition\nchildren:\n- id: a\n  template: {apiVersion: e.com/v1, kind: A, metadata: {name: x}, z: '${parent.y.z}'}\n";
        let composition = Composition::read("x.yaml", text).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(composition.held_to(&schemas(), &Type::new("other.com", "v1", "Other")), []);
    }
}
