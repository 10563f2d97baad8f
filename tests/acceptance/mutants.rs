//! Policies with one thing of them changed: each part of a condition that is true or false is taken for true, and for false; each
//! entry of a list is left out; each rule of what is matched is left out, or wider.

use std::ops::Range;

use serde_json::{Value, json};

/// A ValidatingAdmissionPolicy with one change.
pub struct Mutant {
    /// The policy that it was.
    pub policy: String,
    /// What is changed, and into what.
    pub change: String,
    pub spec: Value,
}

/// All mutants of a policy.
pub fn of(policy: &Value) -> Vec<Mutant> {
    let spec = &policy["spec"];
    let mut all = constraints(&spec["matchConstraints"])
        .into_iter()
        .map(|(change, constraints)| {
            let mut spec = spec.clone();
            spec["matchConstraints"] = constraints;
            (change, spec)
        })
        .collect::<Vec<_>>();
    for list in ["matchConditions", "validations", "variables"] {
        for (index, item) in spec[list].as_array().into_iter().flatten().enumerate() {
            if list == "variables" && !is_used(spec, item["name"].as_str().unwrap_or_default()) {
                continue;
            }
            let name = item["name"].as_str().map_or_else(|| index.to_string(), str::to_owned);
            let expression = item["expression"].as_str().unwrap_or_default();
            for (change, expression) in expressions(expression, list != "variables") {
                let mut spec = spec.clone();
                spec[list][index]["expression"] = json!(expression);
                all.push((format!("{list}/{name}: {change}"), spec));
            }
        }
    }
    let policy = policy["metadata"]["name"].as_str().unwrap_or_default();
    all.into_iter().map(|(change, spec)| Mutant { policy: policy.to_owned(), change, spec }).collect()
}

/// Whether a validation rests on a variable; what only messages say does not matter here.
fn is_used(spec: &Value, name: &str) -> bool {
    let expressions = |list: &str| spec[list].as_array().cloned().unwrap_or_default();
    let variable = format!("variables.{name}");
    let says = |item: &Value| {
        let text = item["expression"].as_str().unwrap_or_default();
        let mut rest = text.split(&variable).skip(1);
        rest.any(|rest| !rest.starts_with(|next: char| next.is_alphanumeric()))
    };
    let of = |item: &Value| item["name"].as_str().unwrap_or_default().to_owned();
    expressions("validations").iter().any(says)
        || expressions("variables").iter().any(|it| says(it) && is_used(spec, &of(it)))
}

/// What is matched, changed once in each way.
fn constraints(constraints: &Value) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    if constraints.get("namespaceSelector").is_some() {
        let mut without = constraints.clone();
        without.as_object_mut().map(|fields| fields.remove("namespaceSelector"));
        all.push(("namespaceSelector: left out".to_owned(), without));
    }
    let rules = constraints["resourceRules"].as_array().cloned().unwrap_or_default();
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("resourceRules/{index}");
        let mut change = |change: String, rule: Option<Value>| {
            let mut changed = rules.clone();
            match rule {
                Some(rule) => changed[index] = rule,
                None => drop(changed.remove(index)),
            }
            let mut constraints = constraints.clone();
            constraints["resourceRules"] = json!(changed);
            all.push((format!("{at}{change}"), constraints));
        };
        if rules.len() > 1 {
            change(": left out".to_owned(), None);
        }
        for field in ["operations", "resources"] {
            let entries = rule[field].as_array().cloned().unwrap_or_default();
            for entry in &entries {
                let rest: Vec<_> = match entry.as_str() {
                    Some("*/*") => vec![json!("*")],
                    _ => entries.iter().filter(|it| *it != entry).cloned().collect(),
                };
                if !rest.is_empty() {
                    let mut rule = rule.clone();
                    rule[field] = json!(rest);
                    change(format!("/{field}: {entry} left out"), Some(rule));
                }
            }
        }
        let scopes: &[&str] = if rule["scope"] == "*" { &["Cluster", "Namespaced"] } else { &["*"] };
        for scope in scopes {
            let mut rule = rule.clone();
            rule["scope"] = json!(scope);
            change(format!("/scope: {scope}"), Some(rule));
        }
    }
    all
}

/// An expression, changed once in each way. `is_truth`: it is true or false as a whole.
fn expressions(text: &str, is_truth: bool) -> Vec<(String, String)> {
    let mut found = Found::default();
    Scan { text, found: &mut found }.expression(0..text.len(), is_truth);
    let with = |span: &Range<usize>, value: &str| format!("{}{value}{}", &text[..span.start], &text[span.end..]);
    let plain = |span: &Range<usize>| text[span.clone()].split_whitespace().collect::<Vec<_>>().join(" ");
    let truths = found.truths.iter().flat_map(|span| {
        let value = |value: &'static str| (format!("{} is {value}", plain(span)), with(span, value));
        [value("true"), value("false")].into_iter().filter(|(_, changed)| changed != text)
    });
    let entries = found.entries.iter().map(|span| (format!("{} is left out", plain(span)), with(span, "")));
    truths.chain(entries).collect()
}

#[derive(Default)]
struct Found {
    /// What is true or false.
    truths: Vec<Range<usize>>,
    /// Entries of lists, each with the comma that goes with it.
    entries: Vec<Range<usize>>,
}

/// Reads CEL as far as this takes: operators, brackets and texts.
struct Scan<'t> {
    text: &'t str,
    found: &'t mut Found,
}

impl Scan<'_> {
    fn expression(&mut self, span: Range<usize>, is_truth: bool) {
        let span = self.trimmed(span);
        if is_truth && !span.is_empty() && !self.found.truths.contains(&span) {
            self.found.truths.push(span.clone());
        }
        self.parts(span, is_truth);
    }

    fn parts(&mut self, span: Range<usize>, is_truth: bool) {
        if let [then, ..] = self.outside(&span, "?")[..] {
            let otherwise = self.outside(&span, ":").first().copied().unwrap_or(span.end);
            self.expression(span.start..then, true);
            self.expression(then + 1..otherwise, is_truth);
            return self.expression((otherwise + 1).min(span.end)..span.end, is_truth);
        }
        for operator in ["||", "&&"] {
            let at = self.outside(&span, operator);
            if !at.is_empty() {
                return self.split(&span, &at, operator.len()).into_iter().for_each(|part| self.expression(part, true));
            }
        }
        if self.text[span.clone()].starts_with('!') {
            let inner = self.trimmed(span.start + 1..span.end);
            return self.parts(inner, true);
        }
        for (open, close) in self.brackets(&span) {
            self.bracket(&span, open, close);
        }
    }

    fn bracket(&mut self, span: &Range<usize>, open: usize, close: usize) {
        let inside = open + 1..close;
        let before = self.text[span.start..open].trim_end();
        let commas = self.outside(&inside, ",");
        let items = self.split(&inside, &commas, 1);
        if self.text[open..].starts_with('[') {
            if before.ends_with(" in") && items.len() > 1 {
                for (index, item) in items.iter().enumerate() {
                    let with_comma = if index == 0 { item.start..items[1].start } else { item.start - 1..item.end };
                    self.found.entries.push(with_comma);
                }
            }
            return;
        }
        let is_whole = open == span.start && close + 1 == span.end;
        let is_macro = [".all", ".exists", ".filter"].iter().any(|name| before.ends_with(name));
        let last = items.len().saturating_sub(1);
        for (index, item) in items.into_iter().enumerate() {
            if is_whole {
                let inner = self.trimmed(item);
                self.parts(inner, true);
            } else {
                self.expression(item, is_macro && index == last);
            }
        }
    }

    fn trimmed(&self, span: Range<usize>) -> Range<usize> {
        let text = &self.text[span.clone()];
        let start = span.start + (text.len() - text.trim_start().len());
        start..start + text.trim().len()
    }

    fn split(&self, span: &Range<usize>, at: &[usize], length: usize) -> Vec<Range<usize>> {
        let starts = std::iter::once(span.start).chain(at.iter().map(|at| at + length));
        let ends = at.iter().copied().chain([span.end]);
        starts.zip(ends).map(|(start, end)| start..end).collect()
    }

    /// Where an operator stands outside of brackets and texts; `.?` and `[?` are none.
    fn outside(&self, span: &Range<usize>, operator: &str) -> Vec<usize> {
        let is_outside = |(at, depth): &(usize, usize)| {
            let optional = operator == "?" && self.text[..*at].ends_with(['.', '[']);
            *depth == 0 && self.text[*at..].starts_with(operator) && !optional
        };
        self.depths(span).into_iter().filter(is_outside).map(|(at, _)| at).collect()
    }

    fn brackets(&self, span: &Range<usize>) -> Vec<(usize, usize)> {
        let (mut all, mut open) = (Vec::new(), 0);
        for (at, depth) in self.depths(span) {
            match self.text.as_bytes()[at] {
                b'(' | b'[' | b'{' if depth == 0 => open = at,
                b')' | b']' | b'}' if depth == 0 => all.push((open, at)),
                _ => {}
            }
        }
        all
    }

    /// Each byte that is not in a text, with how many brackets are open around it.
    fn depths(&self, span: &Range<usize>) -> Vec<(usize, usize)> {
        let (mut all, mut depth, mut quoted) = (Vec::new(), 0_usize, None);
        for (at, byte) in self.text.bytes().enumerate().take(span.end).skip(span.start) {
            match (quoted, byte) {
                (Some(quote), _) if quote == byte => quoted = None,
                (Some(_), _) => {}
                (None, b'\'' | b'"') => quoted = Some(byte),
                (None, b'(' | b'[' | b'{') => {
                    all.push((at, depth));
                    depth += 1;
                }
                (None, b')' | b']' | b'}') => {
                    depth = depth.saturating_sub(1);
                    all.push((at, depth));
                }
                (None, _) => all.push((at, depth)),
            }
        }
        all
    }
}

#[test]
fn each_part_of_a_condition_is_changed_once() {
    let changed = |text: &str, is_truth| {
        expressions(text, is_truth).into_iter().map(|(_, changed)| changed).collect::<Vec<_>>().join(" | ")
    };
    assert_eq!(
        changed("a == 'x || y' || !(b in ['c', 'd'])", true),
        "true | false | true || !(b in ['c', 'd']) | false || !(b in ['c', 'd']) | a == 'x || y' || true | a == 'x || y' || false | \
         a == 'x || y' || !(b in [ 'd']) | a == 'x || y' || !(b in ['c'])"
    );
    assert_eq!(
        changed("x.?y.all(it, it.a && it[?'b'])", true),
        "true | false | x.?y.all(it, true) | x.?y.all(it, false) | x.?y.all(it, true && it[?'b']) | \
         x.?y.all(it, false && it[?'b']) | x.?y.all(it, it.a && true) | x.?y.all(it, it.a && false)"
    );
    assert_eq!(changed("a == 1 ? b.?c : d", false), "true ? b.?c : d | false ? b.?c : d");
}
