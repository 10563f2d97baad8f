//! A composition as its file says it: read, checked, and put in order. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    cel::{Expression, Name},
    outline::Outline,
    template::Template,
};
use crate::{
    config::{
        Errors,
        tree::{Gathered, Node, Position, Section, Value, group_version, is_dns_label, kind_name, parse},
    },
    reconcile::{
        children::{Adopt, Characters, Deletion, Recipe, Related, Type, Update},
        input::{ObjectName, label_key, label_value},
    },
};

const API_VERSION: &str = "leasehold.dev/v1alpha1";
const KIND: &str = "Composition";
pub(super) const RBAC: &str = "rbac.authorization.k8s.io";
/// Children that one template may make of a `forEach`, unless it says otherwise, and at all.
const MAX_EACH: (u16, u16) = (256, 1000);
/// The least and the most characters of a generated value: fewer could be guessed.
const LENGTH: (u16, u16) = (16, 1024);
const DEFAULT_LENGTH: u16 = 32;

/// What the objects of a kind shall have: templates, in the order in which children come into being.
#[derive(Debug, Clone)]
pub struct Composition {
    pub(super) related: BTreeMap<String, Related>,
    pub(super) children: Vec<Child>,
    pub(super) status: Template,
    /// Children that expressions take for optional.
    pub(super) optional: BTreeSet<String>,
    /// Its defaults and rules, applied before an object is stored.
    pub(super) admission: Option<Admission>,
}

/// Defaults and rules, applied before an object is stored.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    /// Fields that an object gets where it says nothing.
    pub(super) defaults: Option<Template>,
    /// Objects that are looked up for the rules, by their names.
    pub(super) lookups: Vec<Lookup>,
    /// What must be true.
    pub(super) rules: Vec<Rule>,
}

/// One object that is looked up.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    pub(super) id: String,
    pub(super) of: Arc<Type>,
    pub(super) namespace: Option<Template>,
    pub(super) name: Template,
}

/// One thing that must be true.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) creation_only: bool,
    pub(super) rule: Expression,
    pub(super) message: Template,
}

/// One template.
#[derive(Debug, Clone)]
pub(super) struct Child {
    pub(super) id: String,
    pub(super) of: Arc<Type>,
    /// All of them, or there is no such child.
    pub(super) include_when: Vec<Expression>,
    pub(super) for_each: Option<(Expression, u16)>,
    /// Those that it refers to, and those it comes after anyhow.
    pub(super) refers: BTreeSet<String>,
    pub(super) after: BTreeSet<String>,
    /// Those that it refers to, and that may be absent.
    pub(super) maybe: BTreeSet<String>,
    /// Those of `after` that must be ready.
    pub(super) after_ready: BTreeSet<String>,
    pub(super) deletion: Deletes,
    pub(super) adopt: Adopt,
    pub(super) update: Update,
    pub(super) generates: Option<Generates>,
    pub(super) ready_when: Vec<Expression>,
    /// The role that it binds: its resource and its name.
    pub(super) binds: Option<(&'static str, String)>,
    pub(super) outline: Outline,
    pub(super) template: Template,
}

/// Values of a Secret that are made once, and when they are made anew.
#[derive(Debug, Clone)]
pub(super) struct Generates {
    pub(super) values: BTreeMap<String, Recipe>,
    pub(super) renew: Option<Template>,
}

/// What becomes of a child that is not desired any more.
#[derive(Debug, Clone)]
pub(super) enum Deletes {
    Plain(Deletion),
    /// The object says it: `Delete` or `Keep`.
    Said(Expression),
}

impl Composition {
    /// Reads a file. `file` is its name as error messages give it.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn read(file: &str, text: &str) -> Result<Self, Errors> {
        let mut errors = Gathered::new(file, text);
        let root = match parse(text) {
            Ok(root) => root,
            Err(unreadable) => {
                errors.add(unreadable.at, "", unreadable.message);
                return Err(errors.into_errors());
            }
        };
        let composition = Reading { lookups: BTreeSet::new(), ids: Vec::new() }.top(&root, &mut errors);
        if errors.is_empty() { Ok(composition) } else { Err(errors.into_errors()) }
    }

    /// The types of whose children some may be taken over from others.
    pub fn adopts(&self) -> Vec<&Type> {
        self.children.iter().filter(|child| child.adopt != Adopt::Never).map(|child| &*child.of).collect()
    }

    /// The types of the children, each once.
    pub fn types(&self) -> Vec<Arc<Type>> {
        let types: BTreeSet<_> = self.children.iter().map(|child| Arc::clone(&child.of)).collect();
        types.into_iter().collect()
    }
}

/// Where expressions stand, and so what they may refer to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Template {
        each: bool,
    },
    Choice,
    Ready,
    Status,
    /// Before an object is stored; `looked` where objects have been looked up.
    Admission {
        looked: bool,
    },
}

struct Reading {
    /// The ids of admission's lookups.
    lookups: BTreeSet<String>,
    /// The ids of children and related objects, with the place of each.
    ids: Vec<(String, Position, bool)>,
}

impl Reading {
    fn top(mut self, root: &Node, errors: &mut Gathered<'_>) -> Composition {
        let mut section = Section::open(root, "", errors);
        section.exactly("apiVersion", API_VERSION, errors);
        section.exactly("kind", KIND, errors);
        let related_nodes = list(&mut section, "related", errors);
        let before = errors.count();
        let child_nodes = list(&mut section, "children", errors);
        if child_nodes.is_empty() && errors.count() == before {
            errors.add(section.at(), "children", "missing or empty; list at least one child");
        }
        self.collect_ids("related", &related_nodes, errors);
        self.collect_ids("children", &child_nodes, errors);
        let status = match section.take("status") {
            None => Template::Map(Vec::new()),
            Some(node) => {
                let refuse = |name: &Name| self.refuse(name, Place::Status);
                let status = Template::read(node, "status", &refuse, errors);
                check_status(&status, node.at, errors);
                status
            }
        };
        let admission = self.admission(&mut section, errors);
        section.finish(errors);

        let mut related = BTreeMap::new();
        for (number, node) in related_nodes.iter().enumerate() {
            related.extend(self.related(node, &format!("related[{number}]"), errors));
        }
        let mut children = Vec::new();
        for (number, node) in child_nodes.iter().enumerate() {
            children.extend(self.child(node, &format!("children[{number}]"), errors));
        }
        one_version_each(&children, &self.ids, errors);
        let maybe = status.refers().into_iter().filter_map(|name| match name {
            Name::Maybe(id) => Some(id.clone()),
            _ => None,
        });
        let optional = maybe.chain(children.iter().flat_map(|child| child.maybe.iter().cloned())).collect();
        check_ready(&children, &child_nodes, errors);
        check_kept(&children, &child_nodes, errors);
        Composition { related, children: self.in_order(children, errors), status, optional, admission }
    }

    fn collect_ids(&mut self, field: &str, nodes: &[&Node], errors: &mut Gathered<'_>) {
        for (number, node) in nodes.iter().enumerate() {
            let Value::Map(entries) = &node.value else { continue };
            let Some((_, id)) = entries.iter().find(|(key, _)| key.name == "id") else { continue };
            let Value::Text(text) = &id.value else { continue };
            let path = format!("{field}[{number}].id");
            let is_child = field == "children";
            if !is_identifier(text) {
                let rule = "letters and digits, beginning with a lower-case letter, at most 63, so that expressions can name it";
                errors.add(id.at, &path, format!("`{text}` is no id: {rule}"));
            } else if let Some((_, first, _)) =
                self.ids.iter().find(|(known, _, child)| known == text && *child == is_child)
            {
                let message = format!("the id `{text}` is given twice, first on line {}; choose another", first.line);
                errors.add(id.at, &path, message);
            } else {
                self.ids.push((text.clone(), id.at, is_child));
            }
        }
    }

    fn knows(&self, id: &str, child: bool) -> bool {
        self.ids.iter().any(|(known, _, is_child)| known == id && *is_child == child)
    }

    /// Why a name must not be referred to where it stands.
    fn refuse(&self, name: &Name, place: Place) -> Option<String> {
        let known = |child| {
            let ids: Vec<_> = self.ids.iter().filter(|(_, _, is)| *is == child).map(|(id, _, _)| id.as_str()).collect();
            if ids.is_empty() { "there are none".to_owned() } else { format!("there are {}", ids.join(", ")) }
        };
        match (name, place) {
            (Name::Old | Name::User, Place::Admission { .. }) => None,
            (Name::Old | Name::User, _) => Some(
                "`old` and `user` are of admission only: an object is reconciled whichever user wrote it".to_owned(),
            ),
            (Name::Child(_) | Name::Maybe(_), Place::Admission { .. }) => {
                Some("admission comes before there are children; look up what it needs with `lookups`".to_owned())
            }
            (Name::Related(id), Place::Admission { looked }) => {
                let known = looked && self.lookups.contains(id);
                (!known).then(|| format!("no lookup of admission has the id `{id}`"))
            }
            (Name::Child(id) | Name::Maybe(id), _) if !self.knows(id, true) => {
                Some(format!("no child has the id `{id}`; {}", known(true)))
            }
            (Name::Related(id), _) if !self.knows(id, false) => {
                Some(format!("nothing related has the id `{id}`; {}", known(false)))
            }
            (Name::Myself, Place::Ready | Place::Template { .. })
            | (Name::Each | Name::Index, Place::Template { each: true }) => None,
            (Name::Each | Name::Index, Place::Template { each: false }) => {
                Some("`each` and `index` need a forEach beside the template".to_owned())
            }
            (Name::Each | Name::Index, _) => Some("`each` and `index` are of the template only".to_owned()),
            (Name::Myself, _) => Some("`self` is of the template and of readyWhen only".to_owned()),
            (Name::Child(_) | Name::Maybe(_) | Name::Related(_), Place::Ready) => {
                Some("readyWhen is about one child: it sees `self` and `parent`".to_owned())
            }
            (Name::Parent | Name::Child(_) | Name::Maybe(_) | Name::Related(_), _) => None,
        }
    }

    fn related(&self, node: &Node, path: &str, errors: &mut Gathered<'_>) -> Option<(String, Related)> {
        let mut section = Section::open(node, path, errors);
        let id = id(&mut section, errors);
        let group_version = group_version(&mut section, errors);
        let kind = kind_name(&mut section, errors).map(|kind| kind.value.to_owned());
        let plural = plural(&mut section, errors);
        let namespace = section.text("namespace", errors);
        if let Some(found) = &namespace
            && !is_dns_label(found.value)
        {
            errors.add(found.at, &found.path, format!("`{}` is no namespace name", found.value));
        }
        let name = section.text("name", errors);
        if let Some(found) = &name
            && found.value.contains("${")
        {
            errors.add(found.at, &found.path, "must be plain text: one watch serves all objects of the kind");
        } else if let Some(found) = &name
            && let Err(wrong) = ObjectName::new(found.value)
        {
            errors.add(found.at, &found.path, wrong.to_string());
        }
        let name = name.map(|found| found.value.to_owned());
        let labels = labels(&mut section, errors);
        let namespace = namespace.map(|found| found.value.to_owned());
        section.finish(errors);
        let ((group, version), kind) = (group_version?, kind?);
        let of = type_of(&group, &version, &kind, plural);
        Some((id?, Related { of, namespace, name, labels }))
    }

    fn child(&self, node: &Node, path: &str, errors: &mut Gathered<'_>) -> Option<Child> {
        let mut section = Section::open(node, path, errors);
        let id = id(&mut section, errors);
        let plural = plural(&mut section, errors);
        let include_when = self.expressions(&mut section, "includeWhen", Place::Choice, errors);
        let ready_when = self.expressions(&mut section, "readyWhen", Place::Ready, errors);
        let for_each = self.for_each(&mut section, errors);
        let (after, after_ready) = self.after(&mut section, errors);
        let deletion = self.deletion(&mut section, for_each.is_some(), errors);
        let choices = [("Never", Adopt::Never), ("IfUnowned", Adopt::IfUnowned), ("Always", Adopt::Always)];
        let adopt = section.choice("adopt", &choices, errors).unwrap_or_default();
        let choices = [("Apply", Update::Apply), ("Recreate", Update::Recreate), ("OnDelete", Update::OnDelete)];
        let update = section.choice("update", &choices, errors).unwrap_or_default();
        if update == Update::Recreate && !matches!(deletion, Deletes::Plain(Deletion::Delete)) {
            let message = "would delete a child that is kept; write `update: OnDelete`, or leave `deletion` out";
            errors.add(section.at(), &section.path_of("update"), message);
        }
        let generates = self.generates(&mut section, for_each.is_some(), errors);
        if generates.is_some() && update != Update::Apply {
            let message = "would make new values without being asked; leave it out";
            errors.add(section.at(), &section.path_of("update"), message);
        }
        let template_node = section.take("template");
        if template_node.is_none() {
            errors.add(section.at(), &section.path_of("template"), "missing; write the object as you would apply it");
        }
        section.finish(errors);

        let node = template_node?;
        let path = format!("{path}.template");
        let place = Place::Template { each: for_each.is_some() };
        let template = Template::read(node, &path, &|name| self.refuse(name, place), errors);
        let of = object(node, &path, plural, errors);
        let (mut refers, mut maybe) = (BTreeSet::new(), BTreeSet::new());
        let choices = include_when.iter().chain(for_each.iter().map(|(list, _)| list));
        for name in choices.flat_map(|expression| expression.refers()).chain(template.refers()) {
            match name {
                Name::Child(id) => _ = refers.insert(id.clone()),
                Name::Maybe(id) => _ = maybe.insert(id.clone()),
                _ => {}
            }
        }
        for field in ["name", "namespace"] {
            let of_metadata = template.field("metadata").and_then(|metadata| metadata.field(field));
            if of_metadata.is_some_and(|value| value.refers().contains(&Name::Myself)) {
                let message = "must not refer to `self`: the child is found by it";
                errors.add(node.at, &format!("{path}.metadata.{field}"), message);
            }
        }
        if for_each.is_some() && !template_name_varies(&template) {
            let message = "with a forEach the name needs `each` or `index`, or all children are the same object";
            errors.add(node.at, &format!("{path}.metadata.name"), message);
        }
        let of = of?;
        if let Some(generates) = &generates {
            check_generated(generates, &of, node, &path, errors);
        }
        let binds = binds(&of, node, &path, errors);
        let outline = Outline::read(&of, node);
        Some(Child {
            id: id?,
            of,
            include_when,
            for_each,
            refers,
            after,
            maybe,
            after_ready,
            deletion,
            adopt,
            update,
            generates,
            ready_when,
            binds,
            outline,
            template,
        })
    }

    /// A list of expressions, each one `${…}`.
    fn expressions(
        &self,
        section: &mut Section<'_>,
        field: &'static str,
        place: Place,
        errors: &mut Gathered<'_>,
    ) -> Vec<Expression> {
        let path = section.path_of(field);
        let mut expressions = Vec::new();
        for (number, node) in list(section, field, errors).into_iter().enumerate() {
            expressions.extend(self.expression(node, &format!("{path}[{number}]"), place, errors));
        }
        expressions
    }

    fn expression(&self, node: &Node, path: &str, place: Place, errors: &mut Gathered<'_>) -> Option<Expression> {
        let before = errors.count();
        match Template::read(node, path, &|name| self.refuse(name, place), errors) {
            Template::Whole(expression) => Some(expression),
            _ if errors.count() > before => None,
            _ => {
                let message =
                    format!("expected one expression such as \"${{has(parent.spec.x)}}\", found {}", node.describe());
                errors.add(node.at, path, message);
                None
            }
        }
    }

    fn admission(&mut self, top: &mut Section<'_>, errors: &mut Gathered<'_>) -> Option<Admission> {
        let mut section = top.section("admission", errors)?;
        let place = Place::Admission { looked: false };
        let defaults = section.take("defaults").map(|node| {
            let path = section.path_of("defaults");
            let defaults = Template::read(node, &path, &|name| self.refuse(name, place), errors);
            match &defaults {
                Template::Map(fields) if fields.iter().all(|(field, _)| field == "spec" || field == "metadata") => {}
                _ => errors.add(node.at, &path, "expected a mapping of `spec`, or of `metadata`"),
            }
            defaults
        });
        let mut lookups: Vec<Lookup> = Vec::new();
        let path = section.path_of("lookups");
        for (number, node) in list(&mut section, "lookups", errors).into_iter().enumerate() {
            if let Some(lookup) = self.lookup(node, &format!("{path}[{number}]"), errors) {
                if !self.lookups.insert(lookup.id.clone()) {
                    let message = format!("the id `{}` is given twice; choose another", lookup.id);
                    errors.add(node.at, &format!("{path}[{number}].id"), message);
                }
                lookups.push(lookup);
            }
        }
        let mut rules = Vec::new();
        let path = section.path_of("rules");
        for (number, node) in list(&mut section, "rules", errors).into_iter().enumerate() {
            rules.extend(self.rule(node, &format!("{path}[{number}]"), errors));
        }
        section.finish(errors);
        Some(Admission { defaults, lookups, rules })
    }

    fn lookup(&self, node: &Node, path: &str, errors: &mut Gathered<'_>) -> Option<Lookup> {
        let mut section = Section::open(node, path, errors);
        let id = id(&mut section, errors);
        let group_version = group_version(&mut section, errors);
        let kind = kind_name(&mut section, errors).map(|kind| kind.value.to_owned());
        let plural = plural(&mut section, errors);
        let place = Place::Admission { looked: false };
        let mut text = |field: &'static str, errors: &mut Gathered<'_>| {
            let node = section.take(field)?;
            Some(Template::read(node, &section.path_of(field), &|name| self.refuse(name, place), errors))
        };
        let (namespace, name) = (text("namespace", errors), text("name", errors));
        if name.is_none() {
            errors.add(node.at, &section.path_of("name"), "missing; one object is looked up, by its name");
        }
        section.finish(errors);
        let ((group, version), kind) = (group_version?, kind?);
        Some(Lookup { id: id?, of: type_of(&group, &version, &kind, plural), namespace, name: name? })
    }

    fn rule(&self, node: &Node, path: &str, errors: &mut Gathered<'_>) -> Option<Rule> {
        let mut section = Section::open(node, path, errors);
        let creation_only = section.choice("on", &[("Create", true), ("Write", false)], errors);
        let place = Place::Admission { looked: true };
        let rule = match section.take("rule") {
            Some(node) => self.expression(node, &section.path_of("rule"), place, errors),
            None => {
                errors.add(section.at(), &section.path_of("rule"), "missing; write one expression that must be true");
                None
            }
        };
        let message = match section.take("message") {
            Some(node) => {
                Some(Template::read(node, &section.path_of("message"), &|name| self.refuse(name, place), errors))
            }
            None => {
                let message = "missing; say which field is wrong, and what to do";
                errors.add(section.at(), &section.path_of("message"), message);
                None
            }
        };
        section.finish(errors);
        Some(Rule { creation_only: creation_only.unwrap_or(false), rule: rule?, message: message? })
    }

    fn for_each(&self, section: &mut Section<'_>, errors: &mut Gathered<'_>) -> Option<(Expression, u16)> {
        let node = section.take("forEach");
        let max = section.number("max", (1, MAX_EACH.1), errors);
        match node {
            Some(node) => {
                let path = section.path_of("forEach");
                let expression = self.expression(node, &path, Place::Choice, errors)?;
                Some((expression, max.unwrap_or(MAX_EACH.0)))
            }
            None => {
                if max.is_some() {
                    errors.add(section.at(), &section.path_of("max"), "is of a forEach; remove it");
                }
                None
            }
        }
    }

    /// Those that it comes after, and those of them that must be ready.
    fn after(&self, section: &mut Section<'_>, errors: &mut Gathered<'_>) -> (BTreeSet<String>, BTreeSet<String>) {
        let path = section.path_of("after");
        let (mut after, mut ready) = (BTreeSet::new(), BTreeSet::new());
        for (number, node) in list(section, "after", errors).into_iter().enumerate() {
            let path = format!("{path}[{number}]");
            let (id, at, must_be_ready) = match &node.value {
                Value::Text(id) => (id.clone(), node.at, false),
                Value::Map(_) => {
                    let mut entry = Section::open(node, &path, errors);
                    let id = id(&mut entry, errors);
                    let must_be_ready = entry.flag("ready", errors).unwrap_or(false);
                    entry.finish(errors);
                    let Some(id) = id else { continue };
                    (id, node.at, must_be_ready)
                }
                _ => {
                    let message =
                        format!("expected the id of a child, or `{{id: …, ready: true}}`, found {}", node.describe());
                    errors.add(node.at, &path, message);
                    continue;
                }
            };
            if !self.knows(&id, true) {
                errors.add(at, &path, format!("no child has the id `{id}`"));
                continue;
            }
            if must_be_ready {
                ready.insert(id.clone());
            }
            after.insert(id);
        }
        (after, ready)
    }

    fn generates(&self, section: &mut Section<'_>, each: bool, errors: &mut Gathered<'_>) -> Option<Generates> {
        let path = section.path_of("generate");
        let (generate, renew) = (section.take("generate"), section.take("renew"));
        let Some(node) = generate else {
            if let Some(node) = renew {
                errors.add(node.at, &section.path_of("renew"), "is of a `generate`; remove it");
            }
            return None;
        };
        let mut values = BTreeMap::new();
        match &node.value {
            Value::Map(entries) if !entries.is_empty() => {
                for (key, value) in entries {
                    let path = format!("{path}.{}", key.name);
                    let is_valid = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
                    if !(1..=253).contains(&key.name.len()) || !key.name.chars().all(is_valid) {
                        errors.add(key.at, &path, "is no key of a Secret: letters, digits, `-`, `_` and `.`");
                    }
                    let mut recipe = Section::open(value, &path, errors);
                    let length = recipe.number("length", LENGTH, errors).unwrap_or(DEFAULT_LENGTH);
                    let choices = [
                        ("Alphanumeric", Characters::Alphanumeric),
                        ("Hex", Characters::Hex),
                        ("Bytes", Characters::Bytes),
                    ];
                    let characters = recipe.choice("characters", &choices, errors).unwrap_or_default();
                    recipe.finish(errors);
                    values.insert(key.name.clone(), Recipe { length, characters });
                }
            }
            _ => {
                let message = format!(
                    "expected a mapping of keys, such as `password: {{length: 32}}`, found {}",
                    node.describe()
                );
                errors.add(node.at, &path, message);
            }
        }
        let renew = renew.map(|node| {
            let path = section.path_of("renew");
            let renew = Template::read(node, &path, &|name| self.refuse(name, Place::Template { each }), errors);
            let is_own = |name: &&Name| matches!(name, Name::Parent | Name::Each | Name::Index);
            if !renew.refers().iter().all(is_own) {
                errors.add(node.at, &path, "sees `parent`, `each` and `index` only: values are made anew on request");
            }
            renew
        });
        Some(Generates { values, renew })
    }

    fn deletion(&self, section: &mut Section<'_>, each: bool, errors: &mut Gathered<'_>) -> Deletes {
        let deletes = Deletes::Plain(Deletion::Delete);
        let path = section.path_of("deletion");
        let Some(node) = section.take("deletion") else { return deletes };
        match &node.value {
            Value::Text(text) if text == "Delete" => return deletes,
            Value::Text(text) if text == "Keep" => return Deletes::Plain(Deletion::Keep),
            Value::Text(text) if text.contains("${") => {}
            _ => {
                let message = format!("expected `Delete`, `Keep`, or one expression, found {}", node.describe());
                errors.add(node.at, &path, message);
                return deletes;
            }
        }
        let Some(expression) = self.expression(node, &path, Place::Template { each }, errors) else {
            return deletes;
        };
        let is_own = |name: &Name| matches!(name, Name::Parent | Name::Each | Name::Index);
        if !expression.refers().iter().all(is_own) {
            let message = "sees `parent`, `each` and `index` only: what is kept must not hang on other objects";
            errors.add(node.at, &path, message);
        }
        Deletes::Said(expression)
    }

    /// Each after those it refers to; among equals in the order of the file.
    fn in_order(&self, mut children: Vec<Child>, errors: &mut Gathered<'_>) -> Vec<Child> {
        let mut ordered: Vec<Child> = Vec::new();
        while !children.is_empty() {
            let is_free = |child: &Child| {
                let mut needs = child.refers.iter().chain(&child.after).chain(&child.maybe);
                needs.all(|id| !children.iter().any(|other| other.id == *id))
            };
            let Some(next) = children.iter().position(is_free) else {
                let round = round(&children);
                let at = self.ids.iter().find(|(id, _, child)| *child && *id == round[0]).map(|(_, at, _)| *at);
                let message = format!("each waits for another: {}; break the circle", round.join(" -> "));
                errors.add(at.unwrap_or(Position::START), "children", message);
                return ordered;
            };
            ordered.push(children.remove(next));
        }
        ordered
    }
}

fn check_status(status: &Template, at: Position, errors: &mut Gathered<'_>) {
    if !matches!(status, Template::Map(_)) {
        errors.add(at, "status", "expected a mapping of fields");
    }
    for ours in ["conditions", "observedGeneration", "shard"] {
        if status.field(ours).is_some() {
            errors.add(at, &format!("status.{ours}"), "is written by the engine; remove it");
        }
    }
}

/// What is waited for until it is ready says when it is.
fn check_ready(children: &[Child], nodes: &[&Node], errors: &mut Gathered<'_>) {
    for child in children {
        for id in &child.after_ready {
            if children.iter().any(|other| other.id == *id && other.ready_when.is_empty()) {
                let message =
                    format!("{id} has no readyWhen, and so is ready when it is there: add one, or leave `ready` out");
                errors.add(place(nodes, &child.id), &format!("children.{}.after", child.id), message);
            }
        }
    }
}

/// What lies in a namespace goes with it, whatever is said of it.
fn check_kept(children: &[Child], nodes: &[&Node], errors: &mut Gathered<'_>) {
    let is_space = |child: &&Child| child.of.group.is_empty() && child.of.kind == "Namespace";
    for child in children.iter().filter(|child| !matches!(child.deletion, Deletes::Plain(Deletion::Delete))) {
        let goes_along = |space: &&Child| {
            matches!(space.deletion, Deletes::Plain(Deletion::Delete)) && child.outline.is_in(&space.outline)
        };
        if let Some(space) = children.iter().filter(is_space).find(goes_along) {
            let message = format!("lies in the namespace that {} makes, and goes with it: keep that as well", space.id);
            errors.add(place(nodes, &child.id), &format!("children.{}.deletion", child.id), message);
        }
    }
}

fn place(nodes: &[&Node], id: &str) -> Position {
    let is_it = |node: &&&Node| matches!(&node.value, Value::Map(entries) if entries.iter().any(|(key, value)| key.name == "id" && matches!(&value.value, Value::Text(text) if text == id)));
    nodes.iter().find(is_it).map_or(Position::START, |node| node.at)
}

/// One object is the same in every version of its type: two templates that say it in two would undo each other for ever.
fn one_version_each(children: &[Child], ids: &[(String, Position, bool)], errors: &mut Gathered<'_>) {
    for (number, child) in children.iter().enumerate() {
        let is_other = |other: &&Child| {
            other.of.group == child.of.group && other.of.kind == child.of.kind && other.of.version != child.of.version
        };
        let Some(other) = children[..number].iter().find(is_other) else { continue };
        let at = ids.iter().find(|(id, _, is_child)| *is_child && *id == child.id).map(|(_, at, _)| *at);
        let message = format!(
            "{} is {}, and {} is {}: one type in two versions; write one of them",
            child.id, child.of, other.id, other.of
        );
        errors.add(at.unwrap_or(Position::START), "children", message);
    }
}

/// A circle among children that all wait for one of them.
fn round(children: &[Child]) -> Vec<String> {
    let mut path: Vec<String> = vec![children[0].id.clone()];
    loop {
        let last = path.last().cloned().unwrap_or_default();
        let next = children.iter().find(|child| child.id == last).and_then(|child| {
            let mut needs = child.refers.iter().chain(&child.after).chain(&child.maybe);
            needs.find(|id| children.iter().any(|other| other.id == **id)).cloned()
        });
        let Some(next) = next else { return path };
        if let Some(begin) = path.iter().position(|id| *id == next) {
            path.drain(..begin);
            path.push(next);
            return path;
        }
        path.push(next);
    }
}

/// What a template says of itself must be known without an object: permissions and watches follow from it.
fn object(node: &Node, path: &str, plural: Option<String>, errors: &mut Gathered<'_>) -> Option<Arc<Type>> {
    let mut section = Section::open(node, path, errors);
    for field in ["apiVersion", "kind"] {
        if let Some(found) = section.text(field, errors)
            && found.value.contains("${")
        {
            errors.add(found.at, &found.path, "must be plain text: permissions and watches follow from it");
            return None;
        }
    }
    let group_version = group_version(&mut section, errors);
    let kind = kind_name(&mut section, errors).map(|kind| kind.value.to_owned());
    if let Some(node) = section.take("status") {
        errors.add(node.at, &section.path_of("status"), "is not applied; remove it");
    }
    match section.take("metadata") {
        None => errors.add(section.at(), &section.path_of("metadata"), "missing; write at least `metadata: {name: …}`"),
        Some(node) => metadata(node, &section.path_of("metadata"), errors),
    }
    let ((group, version), kind) = (group_version?, kind?);
    Some(type_of(&group, &version, &kind, plural))
}

/// A role that an object chooses could be any, `cluster-admin` too: it must stand in the file, and then its binding can be granted.
fn binds(of: &Type, node: &Node, path: &str, errors: &mut Gathered<'_>) -> Option<(&'static str, String)> {
    if of.group != RBAC || !matches!(of.kind.as_str(), "RoleBinding" | "ClusterRoleBinding") {
        return None;
    }
    let mut section = Section::open(node, path, errors);
    let mut role = section.section("roleRef", errors)?;
    let kind = role.text("kind", errors)?;
    let name = role.text("name", errors)?;
    for field in [&kind, &name] {
        if field.value.contains("${") {
            errors.add(field.at, &field.path, "must be plain text: the right to give it away follows from it");
            return None;
        }
    }
    let resource = if kind.value == "Role" { "roles" } else { "clusterroles" };
    Some((resource, name.value.to_owned()))
}

/// A generated value stands in a Secret, under a key that the template leaves free.
fn check_generated(generates: &Generates, of: &Type, node: &Node, path: &str, errors: &mut Gathered<'_>) {
    if !of.group.is_empty() || of.kind != "Secret" {
        errors.add(node.at, path, "values are generated in a Secret only: write `apiVersion: v1`, `kind: Secret`");
        return;
    }
    let Value::Map(entries) = &node.value else { return };
    for (key, value) in entries {
        match (key.name.as_str(), &value.value) {
            ("data", Value::Map(data)) => {
                for (key, _) in data.iter().filter(|(key, _)| generates.values.contains_key(&key.name)) {
                    errors.add(
                        key.at,
                        &format!("{path}.data.{}", key.name),
                        "is generated; remove it from the template",
                    );
                }
            }
            ("data", _) => {
                errors.add(value.at, &format!("{path}.data"), "must be a mapping: beside it values are generated")
            }
            ("stringData", _) => {
                errors.add(
                    value.at,
                    &format!("{path}.stringData"),
                    "is written once only; write `data`, with base64.encode",
                );
            }
            ("immutable", _) => {
                errors.add(
                    value.at,
                    &format!("{path}.immutable"),
                    "a Secret with generated values can be renewed; remove it",
                );
            }
            _ => {}
        }
    }
}

fn metadata(node: &Node, path: &str, errors: &mut Gathered<'_>) {
    let mut section = Section::open(node, path, errors);
    if section.take("name").is_none() {
        errors.add(section.at(), &section.path_of("name"), "missing; a child is found again by its name");
    }
    for (field, why) in [
        ("generateName", "a child is found again by its name; write `name`"),
        ("ownerReferences", "who owns a child is the engine's to say; remove it"),
        ("uid", "is the API server's to say; remove it"),
        ("resourceVersion", "is the API server's to say; remove it"),
        ("managedFields", "is the API server's to say; remove it"),
    ] {
        if let Some(node) = section.take(field) {
            errors.add(node.at, &section.path_of(field), why);
        }
    }
    for field in ["labels", "annotations"] {
        let Some(node) = section.take(field) else { continue };
        let entries = match &node.value {
            Value::Map(entries) => entries,
            // One expression makes the whole of it, and whether it makes a mapping shows with an object.
            Value::Text(text) if text.starts_with("${") && text.ends_with('}') => continue,
            Value::Null => continue,
            _ => {
                let message = format!("expected a mapping, found {}", node.describe());
                errors.add(node.at, &section.path_of(field), message);
                continue;
            }
        };
        for (key, _) in entries {
            if key.name.starts_with("leasehold.dev/") || key.name == "app.kubernetes.io/managed-by" {
                let path = format!("{}.{}", section.path_of(field), key.name);
                errors.add(key.at, &path, "is the engine's to write; remove it");
            }
        }
    }
}

fn template_name_varies(template: &Template) -> bool {
    let metadata = template.field("metadata");
    let varies = |field| {
        let refers = metadata.and_then(|metadata| metadata.field(field)).map(Template::refers).unwrap_or_default();
        refers.contains(&Name::Each) || refers.contains(&Name::Index)
    };
    varies("name") || varies("namespace")
}

fn id(section: &mut Section<'_>, errors: &mut Gathered<'_>) -> Option<String> {
    let found = section.text("id", errors);
    if found.is_none() && !section.has("id") {
        errors.add(section.at(), &section.path_of("id"), "missing; expressions and messages name it by that");
    }
    found.map(|found| found.value.to_owned()).filter(|id| is_identifier(id))
}

fn is_identifier(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.chars().all(|character| character.is_ascii_alphanumeric())
}

fn plural(section: &mut Section<'_>, errors: &mut Gathered<'_>) -> Option<String> {
    let found = section.text("resource", errors)?;
    if !is_dns_label(found.value) {
        let message = format!("`{}` is no resource: the plural in lower case, such as `widgets`", found.value);
        errors.add(found.at, &found.path, message);
    }
    Some(found.value.to_owned())
}

fn type_of(group: &str, version: &str, kind: &str, plural: Option<String>) -> Arc<Type> {
    let mut of = Type::new(group, version, kind);
    if let Some(plural) = plural {
        of.plural = plural;
    }
    Arc::new(of)
}

fn labels(section: &mut Section<'_>, errors: &mut Gathered<'_>) -> BTreeMap<String, String> {
    let path = section.path_of("matchLabels");
    let Some(node) = section.take("matchLabels") else { return BTreeMap::new() };
    let mut labels = BTreeMap::new();
    let Value::Map(entries) = &node.value else {
        errors.add(node.at, &path, format!("expected a mapping of labels, found {}", node.describe()));
        return labels;
    };
    for (key, value) in entries {
        if let Err(wrong) = label_key(&key.name) {
            errors.add(value.at, &path, wrong.to_string());
        }
        match &value.value {
            Value::Text(text) => match label_value(text) {
                Ok(()) => _ = labels.insert(key.name.clone(), text.clone()),
                Err(wrong) => errors.add(value.at, &format!("{path}.{}", key.name), wrong.to_string()),
            },
            _ => errors.add(value.at, &format!("{path}.{}", key.name), "expected text; put it in quotes"),
        }
    }
    labels
}

fn list<'n>(section: &mut Section<'n>, field: &'static str, errors: &mut Gathered<'_>) -> Vec<&'n Node> {
    let Some(node) = section.take(field) else { return Vec::new() };
    match &node.value {
        Value::List(items) => items.iter().collect(),
        _ => {
            errors.add(node.at, &section.path_of(field), format!("expected a list, found {}", node.describe()));
            Vec::new()
        }
    }
}
