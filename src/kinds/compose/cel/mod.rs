//! Expressions: the Common Expression Language, compiled once and evaluated within bounds.
//!
//! All of it is ours, because an expression may cost no more than its object is large, must have the same value on every
//! replica, and must mean what it means to Kubernetes: [`parse`] reads the text, [`tree`] is what it compiles to, [`run`]
//! evaluates that, [`budget`] counts what it costs, [`value`] is what it goes through, and [`functions`] are the library.
//! It is compared with cel-go, over generated expressions. Pure.

mod budget;
#[cfg(test)]
mod compare;
mod fields;
mod functions;
mod parse;
mod run;
#[cfg(test)]
mod spec;
mod tree;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use serde_json::Value as Json;

use self::{
    budget::{Budget, Spent},
    run::{Halt, Outcome, Patterns, Run},
    tree::{Growing, Node},
    value::Value,
};

/// The longest text of one expression.
const LONGEST: usize = 4096;
/// The deepest nesting of brackets, and of choices: they are read by recursion.
const DEEPEST: usize = 48;

pub(super) use parse::end_of;

/// A compiled expression.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    text: String,
    tree: Node,
    refers: BTreeSet<Name>,
}

/// What an expression may refer to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Name {
    /// The object that is reconciled.
    Parent,
    /// The item of a `forEach`.
    Each,
    /// Its number, from 0.
    Index,
    /// The child that a `readyWhen` is about.
    Myself,
    /// A child by id: the object, or a list of them if it has a `forEach`; as it was last seen.
    Child(String),
    /// A child that may be absent, `children.?id`: a mapping of its id to the child, or of nothing.
    Maybe(String),
    /// Related objects by id: a list.
    Related(String),
    /// The object before an update that is asked for; null for a creation.
    Old,
    /// Who asks for a write: `username`, `groups`.
    User,
}

impl Name {
    fn variable(&self) -> String {
        match self {
            Self::Parent => "parent".to_owned(),
            Self::Each => "each".to_owned(),
            Self::Index => "index".to_owned(),
            Self::Myself => "self".to_owned(),
            Self::Child(id) => format!("children.{id}"),
            Self::Maybe(id) => format!("children.?{id}"),
            Self::Related(id) => format!("related.{id}"),
            Self::Old => "old".to_owned(),
            Self::User => "user".to_owned(),
        }
    }

    fn plain(variable: &str) -> Option<Self> {
        match variable {
            "parent" => Some(Self::Parent),
            "each" => Some(Self::Each),
            "index" => Some(Self::Index),
            "self" => Some(Self::Myself),
            "old" => Some(Self::Old),
            "user" => Some(Self::User),
            _ => None,
        }
    }
}

impl Expression {
    /// Compiles the text between `${` and `}`. The error says what is wrong with it.
    pub(super) fn compile(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("an empty expression".to_owned());
        }
        if text.len() > LONGEST {
            return Err(format!("an expression of {} bytes; the most is {LONGEST}", text.len()));
        }
        let parsed = parse::parse(text, DEEPEST)?;
        let mut growing = Growing::default();
        let tree = growing.node(&parsed)?;
        Ok(Self { text: text.trim().to_owned(), tree, refers: growing.refers })
    }

    /// Its text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What it refers to.
    pub(super) fn refers(&self) -> &BTreeSet<Name> {
        &self.refers
    }
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unknown {
    /// A field, or an item, that is not there, and whose it would be in the end, as far as the text tells. It may come.
    Missing(String, Option<Name>),
    /// Anything else.
    Failed(String),
}

/// What the expressions of one object share: what they see, and what they have spent.
#[derive(Clone)]
pub(super) struct Evaluation {
    known: BTreeMap<Name, Value>,
    budget: Budget,
    patterns: Rc<Patterns>,
}

impl Evaluation {
    /// Nothing is seen yet, and nothing spent. A brief one may take about as long as others can wait.
    pub(super) fn new(brief: bool) -> Self {
        Self { known: BTreeMap::new(), budget: Budget::new(brief), patterns: Rc::default() }
    }

    /// Lets expressions see a value.
    pub(super) fn show(&mut self, name: Name, value: &Json) {
        // What is too much has no value: every expression fails then.
        let value = self.budget.show(size(value)).map_or(Value::Null, |()| Value::from_json(value));
        self.known.insert(name, value);
    }

    /// Counts what is looked at beside expressions. Whether there is enough left.
    pub(super) fn look_at(&self, value: &Json) -> bool {
        self.budget.see(size(value)).is_ok()
    }

    /// Whether more was spent than there is: what has failed then may have failed for that.
    pub(super) fn is_over(&self) -> bool {
        self.budget.is_over()
    }

    /// As it is, for something that sees more: an item of a `forEach`, or itself. The budget is the same.
    pub(super) fn inner(&self) -> Self {
        self.clone()
    }

    /// The value of an expression, as JSON.
    pub(super) fn value(&self, expression: &Expression) -> Result<Json, Unknown> {
        let value = self.evaluate(expression).map_err(unknown)?;
        self.budget.make(value.size()).map_err(|Spent(why)| Unknown::Failed(why.to_owned()))?;
        value.to_json().map_err(Unknown::Failed)
    }

    fn evaluate(&self, expression: &Expression) -> Outcome {
        let (known, budget, patterns) = (&self.known, &self.budget, &*self.patterns);
        let mut run = Run { known, budget, patterns, locals: Vec::new() };
        run.value(&expression.tree)
    }
}

/// Says it without the values: they may be those of a Secret.
fn unknown(halt: Halt) -> Unknown {
    match halt {
        Halt::Missing { what, root } => Unknown::Missing(what, root),
        Halt::Failed(why) => Unknown::Failed(why),
        Halt::Spent(Spent(why)) => Unknown::Failed(why.to_owned()),
    }
}

/// About how many bytes a value takes.
fn size(value: &Json) -> u64 {
    match value {
        Json::Array(items) => items.iter().map(size).fold(16, u64::saturating_add),
        Json::Object(fields) => {
            fields.iter().map(|(key, value)| 48 + key.len() as u64 + size(value)).fold(16, u64::saturating_add)
        }
        Json::String(text) => 16 + text.len() as u64,
        _ => 16,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn seeing(parent: &Json) -> Evaluation {
        let mut evaluation = Evaluation::new(false);
        evaluation.show(Name::Parent, parent);
        evaluation
    }

    fn value(text: &str, parent: &Json) -> Result<Json, Unknown> {
        let expression = Expression::compile(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
        seeing(parent).value(&expression)
    }

    #[test]
    fn values_keep_their_types() {
        let parent = json!({"n": 3, "big": -7, "half": 0.5, "yes": true, "no": null, "s": "x",
            "list": [1, "a", null], "map": {"b": {"c": []}, "a": 1}});
        for field in ["n", "big", "half", "yes", "no", "s", "list", "map"] {
            assert_eq!(value(&format!("parent.{field}"), &parent), Ok(parent[field].clone()), "{field}");
        }
        for (text, expected) in [
            ("parent.n + 1", json!(4)),
            ("parent.n > 2 ? 'many' : 'few'", json!("many")),
            ("'a-' + parent.s", json!("a-x")),
            ("has(parent.absent) ? 1 : 2", json!(2)),
            ("[parent.n, parent.n * 2]", json!([3, 6])),
            ("{'k': parent.s}", json!({"k": "x"})),
            ("size(parent.list)", json!(3)),
            ("parent.list.filter(i, i != null).map(i, string(i))", json!(["1", "a"])),
            ("parent.map.map(k, k)", json!(["a", "b"])),
            ("parent.s.upperAscii()", json!("X")),
            ("['a', 'b'].join('-')", json!("a-b")),
            ("'a.b'.replace('.', '-')", json!("a-b")),
            ("math.greatest(parent.n, 5)", json!(5)),
            ("lists.range(3)", json!([0, 1, 2])),
            ("parent.list.exists(i, i == 'a')", json!(true)),
            ("1.0 == 1 && 1u == 1 && 1 in [1.0] && {1: 'a'}[1.0] == 'a'", json!(true)),
            ("[parent.absent == 1, true].size() == 2 || true", json!(true)),
            ("parent.list.exists(i, i > 2 || i == 'a')", json!(true)),
            ("parent.list.all(i, i == 1 && i < 0)", json!(false)),
            ("[1, 2, 3].exists_one(i, i > 2)", json!(true)),
            ("[1, 2, 3].map(i, i > 1, i * 2)", json!([4, 6])),
            ("[[1, 2], [3]].map(x, x.map(y, [x.size(), y]))", json!([[[2, 1], [2, 2]], [[1, 3]]])),
            ("'%s'.format([parent.map])", json!("{a: 1, b: {c: []}}")),
            ("'%s %d %.2f'.format(['x', 3, 1.5])", json!("x 3 1.50")),
            ("'äbcäb'.indexOf('b') + 10 * 'äbcäb'.lastIndexOf('äb')", json!(31)),
            ("'äbcäb'.lastIndexOf('b', 3)", json!(1)),
            ("'a,b,c'.split(',', 2)", json!(["a", "b,c"])),
            ("'äb'.split('')", json!(["ä", "b"])),
            ("'aXbXc'.replace('X', '', 1)", json!("abXc")),
            ("'size äöü'.size()", json!(8)),
            ("[3, 1, 2].sort().map(i, string(i)).join('<')", json!("1<2<3")),
            ("[1, 1.0, 'a', [1], [1u], 'a'].distinct()", json!([1, "a", [1]])),
            ("sets.contains([1, 'a', {'x': 1}], [{'x': 1.0}, 'a'])", json!(true)),
            ("sets.equivalent([1, 2, 2], [2, 1]) && !sets.intersects([1], [2])", json!(true)),
            ("'abc123'.matches('^[a-c]+[0-9]+$') && 'a1b2'.findAll('[0-9]') == ['1', '2']", json!(true)),
            ("timestamp('2026-01-02T03:04:05Z') + duration('1h') == timestamp('2026-01-02T04:04:05Z')", json!(true)),
            ("[quantity('1Ki'), quantity('1024')].distinct().size()", json!(1)),
            ("optional.of(parent.map).value().a", json!(1)),
            ("{'a': 1, 'b': 2}.merge({'b': 3})", json!({"a": 1, "b": 3})),
            ("parent.map.transformMapEntry(k, v, {'x/' + k: v})", json!({"x/a": 1, "x/b": {"c": []}})),
            (
                "parent.list.transformMapEntry(i, v, v != null, {string(i): [1].map(x, [x, v])})",
                json!({"0": [[1, 1]], "1": [[1, "a"]]}),
            ),
            ("quantity('1Gi').isGreaterThan(quantity('1Mi'))", json!(true)),
        ] {
            assert_eq!(value(text, &parent), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_may_come_and_what_fails_says_why_without_the_values() {
        let parent = json!({"secret": "geheim", "n": 1, "list": []});
        for (text, expected) in [
            ("parent.absent", Unknown::Missing("there is no `absent`".to_owned(), Some(Name::Parent))),
            ("parent.list[0]", Unknown::Missing("the list is shorter".to_owned(), Some(Name::Parent))),
            ("size(parent.absent)", Unknown::Missing("there is no `absent`".to_owned(), Some(Name::Parent))),
            ("int(string(parent.list[3]))", Unknown::Missing("the list is shorter".to_owned(), Some(Name::Parent))),
            ("parent.absent.map(i, i)", Unknown::Missing("there is no `absent`".to_owned(), Some(Name::Parent))),
            ("[{'a': 1}].map(i, i.b)", Unknown::Missing("there is no `b`".to_owned(), None)),
            ("parent.n + parent.secret", Unknown::Failed("cannot add int and string".to_owned())),
            ("base64.decode(parent.n)", Unknown::Failed("base64.decode has no value for (int)".to_owned())),
            ("parent.n / 0", Unknown::Failed("division by zero".to_owned())),
        ] {
            assert_eq!(value(text, &parent), Err(expected), "{text}");
        }
    }

    /// Each function and operator that gets what it cannot use, and finds it in the value that must not be told.
    #[test]
    fn no_message_holds_a_value() {
        let secret = "Z2VoZWlt-geheim";
        let parent = json!({"secret": secret, "n": 1, "list": [secret], "map": {secret: secret, "n": 1}});
        let told = |why: &str| why.contains("geheim") || why.contains("Z2Vo");
        let mut asked = 0;
        for text in [
            "parent.secret < 3",
            "parent.secret.foo",
            "parent.secret[0]",
            "parent.map[parent.secret + 'x']",
            "{parent.secret: 1}[parent.secret + 'x']",
            "[1][parent.secret]",
            "parent.secret + 1",
            "-parent.secret",
            "!parent.secret",
            "parent.secret ? 1 : 2",
            "parent.secret && true",
            "parent.list.all(i, i)",
            "parent.list.map(i, i.x)",
            "has(parent.list.x)",
            "1 in parent.secret",
            "parent.secret.map(i, i)",
            "b'x' + parent.secret",
            "(parent.secret + '%d').format([])",
            "'%d'.format([parent.secret])",
            "[parent.map].join(',')",
            "parent.secret.matches('(' + '')",
            "'x'.matches(parent.secret + '(')",
            "math.greatest(parent.secret, 1)",
            "quantity('1').isGreaterThan(parent.secret)",
        ] {
            let Err(Unknown::Failed(why) | Unknown::Missing(why, _)) = value(text, &parent) else { panic!("{text}") };
            assert!(!told(&why) && why.len() < 400, "{text}: {why}");
        }
        for function in [
            "int",
            "uint",
            "double",
            "bytes",
            "duration",
            "timestamp",
            "size",
            "quantity",
            "ip",
            "cidr",
            "url",
            "semver",
            "base64.encode",
            "base64.decode",
            "math.abs",
            "math.sqrt",
            "lists.range",
            "sets.contains",
            "strings.quote",
            "format.named",
            "optional.of",
            "string",
        ] {
            for of in
                ["parent.secret", "parent.list", "parent.map", "parent.secret, parent.secret", "parent.n, parent.map"]
            {
                let text = format!("{function}({of})");
                if Expression::compile(&text).is_err() {
                    continue;
                }
                if let Err(Unknown::Failed(why) | Unknown::Missing(why, _)) = value(&text, &parent) {
                    assert!(!told(&why) && why.len() < 400, "{text}: {why}");
                    asked += 1;
                }
            }
        }
        for method in [
            "contains",
            "startsWith",
            "endsWith",
            "indexOf",
            "lastIndexOf",
            "split",
            "replace",
            "charAt",
            "substring",
            "sum",
            "min",
            "max",
            "slice",
            "sort",
            "flatten",
            "distinct",
            "find",
            "findAll",
            "isGreaterThan",
            "compareTo",
            "getHost",
            "getFullYear",
            "add",
            "sub",
            "asInteger",
            "major",
            "containsIP",
            "value",
            "orValue",
            "validate",
            "reverse",
            "isSorted",
            "lowerAscii",
            "join",
            "format",
        ] {
            for (of, with) in
                [("parent.secret", "parent.list"), ("parent.map", "parent.secret"), ("parent.list", "parent.map")]
            {
                let with = if Expression::compile(&format!("{of}.{method}({with})")).is_ok() { with } else { "" };
                let text = format!("{of}.{method}({with})");
                if Expression::compile(&text).is_err() {
                    continue;
                }
                if let Err(Unknown::Failed(why) | Unknown::Missing(why, _)) = value(&text, &parent) {
                    assert!(!told(&why) && why.len() < 400, "{text}: {why}");
                    asked += 1;
                }
            }
        }
        assert!(asked > 100, "{asked} have failed");
    }

    #[test]
    fn what_is_wrong_with_an_expression_is_known_before_it_is_evaluated() {
        for (text, expected) in [
            ("", "an empty expression"),
            ("parnt.spec", "unknown name `parnt`"),
            ("parent.list.map(i, j)", "unknown name `j`"),
            ("children", "write children.<id>"),
            ("children['a']", "write children.<id>"),
            ("lenght(parent.s)", "unknown function `lenght`"),
            ("parent.s.upper()", "unknown function `upper`"),
            ("mth.ceil(1.5)", "unknown"),
            ("Thing{a: 1}", "not supported"),
            ("parent.s.substring()", "`substring` takes 1 to 2 arguments, and gets 0"),
            ("contains(parent.s, 'a')", "`contains` is written value.contains()"),
            ("'a'.matches('(')", "the regular expression is none"),
            ("authorizer.group('').resource('pods').check('get').allowed()", "asks no API server"),
            ("[1].map(x.y, 1)", "begins with the name of a variable"),
            ("parent.in", "write ['name']"),
            ("1 + let", "reserved"),
            ("'a", "a text without its end"),
            ("'\\q'", "is no escape"),
            ("99999999999999999999", "too large"),
            ("parent.map.transformMapEntry(k, {k: 1})", "write transformMapEntry(key, value, {…})"),
            ("has(children.a)", "is always true"),
            ("1 +", "column"),
        ] {
            let wrong = Expression::compile(text).map(|_| ()).unwrap_err();
            assert!(wrong.contains(expected), "{text}: {wrong}");
        }
        assert!(Expression::compile(&format!("'{}'", "x".repeat(LONGEST))).unwrap_err().contains("bytes"));
        assert!(Expression::compile(&"(".repeat(1000)).is_err());
    }

    #[test]
    fn what_it_refers_to_is_known() {
        let text = "children.ns.metadata.name + related.base[0].data[parent.key] + each.x + string(index)";
        let expression = Expression::compile(text).unwrap();
        let expected =
            [Name::Parent, Name::Each, Name::Index, Name::Child("ns".to_owned()), Name::Related("base".to_owned())];
        assert_eq!(expression.refers().iter().cloned().collect::<Vec<_>>(), expected);
        let hidden = Expression::compile("parent.list.map(children, children.id)").unwrap();
        assert_eq!(hidden.refers().len(), 1, "a variable of a macro hides the name");
    }

    #[test]
    fn no_expression_makes_or_takes_more_than_it_may() {
        let wide = json!({"list": vec!["x"; 500], "big": "x".repeat(1 << 20)});
        let doubled = (0..40).fold("parent.big".to_owned(), |text, _| format!("[{text}].map(a, a + a)[0]"));
        for text in [
            "parent.list.map(a, parent.list.map(b, parent.list.map(c, parent.list.map(d, 1))))",
            "parent.list.all(a, parent.list.all(b, parent.list.all(c, parent.list.all(d, true))))",
            "parent.list.exists(a, parent.list.exists(b, parent.list.exists(c, parent.list.exists(d, false))))",
            "parent.list.map(a, parent.big)",
            "parent.list.map(a, {a: parent.big})",
            "parent.big.replace('x', parent.big)",
            "parent.list.join(parent.big)",
            "lists.range(9999999999)",
            &doubled,
        ] {
            let Ok(expression) = Expression::compile(text) else { continue };
            let outcome = seeing(&wide).value(&expression);
            assert!(matches!(&outcome, Err(Unknown::Failed(_))), "{text}");
        }
        assert!(value("parent.list.map(a, a + 'y')", &wide).is_ok());
    }

    #[test]
    fn no_expression_sees_more_than_it_may() {
        let large = json!({"big": "x".repeat(12 << 20)});
        let mut seeing = seeing(&large);
        let cheap = Expression::compile("1").unwrap();
        seeing.show(Name::Related("some".to_owned()), &json!([large]));
        assert_eq!(seeing.value(&cheap), Ok(json!(1)));
        seeing.show(Name::Related("more".to_owned()), &json!([large]));
        let Err(Unknown::Failed(why)) = seeing.value(&cheap) else { panic!() };
        assert!(why.contains("32 MiB"), "{why}");
    }

    #[test]
    fn what_is_gone_through_often_takes_as_long_as_it_is() {
        let parent = json!({"list": (0..40_000).collect::<Vec<_>>()});
        for text in [
            "parent.list.map(i, i + 1).size()",
            "parent.list.filter(i, i > 10).size()",
            "parent.list.map(i, {'name': string(i), 'value': i}).size()",
            "parent.list.distinct().size()",
            "sets.contains(parent.list, parent.list)",
            "sets.equivalent(parent.list, parent.list)",
            "parent.list.map(i, string(i)).join(',').size()",
            "parent.list.sort().size()",
        ] {
            let seen = seeing(&parent);
            let expression = Expression::compile(text).unwrap();
            seen.value(&expression).unwrap_or_else(|why| panic!("{text}: {why:?}"));
            // The budget is for what goes round in itself; this is far from it.
            let spent = seen.budget.spent();
            assert!(spent < 40_000 * 2000, "{text} costs {spent}");
        }
        for text in [
            "parent.list.map(i, parent.list.map(j, i)).size()",
            "parent.list.exists(i, i in parent.list.map(j, -j - 1))",
            "parent.list.map(i, parent.list == parent.list.map(j, j)).size()",
            "parent.list.map(i, 'x'.matches('(' + string(i) + '){0,900}')).size()",
        ] {
            let Err(Unknown::Failed(why)) = value(text, &parent) else { panic!("{text}") };
            assert!(why.starts_with("the expressions of this object "), "{text}: {why}");
        }
    }

    /// A value that is shared in itself is larger than any number, written out.
    #[test]
    fn what_is_larger_than_can_be_counted_costs_more_than_there_is() {
        let doubled = format!("[1]{}", ".map(a, [a, a])".repeat(70));
        for uses in [
            "x",
            "x in [x]",
            "x == x",
            "[x].indexOf(x)",
            "[x].lastIndexOf(x)",
            "[x].includes(x)",
            "[x, x].max()",
            "[x].isSorted()",
            "[x].distinct()",
            "sets.contains([x], [x])",
            "json.marshal(x)",
            "'%s'.format([x])",
            "{'a': x} == {'a': x}",
        ] {
            let Err(Unknown::Failed(why)) = value(&format!("cel.bind(x, {doubled}, {uses})"), &json!({})) else {
                panic!("{uses}");
            };
            assert!(why.starts_with("the expressions of this object "), "{uses}: {why}");
        }
    }

    /// Long keys, numbers of many digits and doubles that are written with hundreds: to go through them again is work again.
    #[test]
    fn what_is_compared_often_is_paid_for_each_time() {
        let doubles = vec![json!(1e308); 150_000];
        let parent = json!({"list": (0..5000).collect::<Vec<_>>(), "long": "x".repeat(1 << 20),
            "digits": "7".repeat(1 << 18), "doubles": doubles});
        for text in [
            "cel.bind(k, parent.long + 'a', cel.bind(m, {parent.long + 'b': 1}, parent.list.map(i, k in m)))",
            "cel.bind(k, parent.long + 'a', cel.bind(m, {parent.long + 'b': 1}, parent.list.map(i, m[?k].hasValue())))",
            "cel.bind(m, {parent.long + 'a': 1}, cel.bind(n, {parent.long + 'b': 1}, parent.list.map(i, m.merge(n))))",
            "cel.bind(q, quantity(parent.digits), parent.list.map(i, q.compareTo(q)))",
            "cel.bind(q, quantity(parent.digits), parent.list.map(i, q.asApproximateFloat()))",
            "'%s'.format([parent.doubles]).size()",
            "parent.long.matches('[xy]*x[xy]{1000}z')",
            "parent.list.exists(i, parent.long.matches('[xy]*x[xy]{60}z'))",
        ] {
            let Err(Unknown::Failed(why)) = value(text, &parent) else { panic!("{text}") };
            assert!(why.starts_with("the expressions of this object "), "{text}: {why}");
        }
    }

    #[test]
    fn the_least_numbers_have_no_value_and_break_nothing() {
        for text in [
            "quantity('1e-2147483648')",
            "quantity('1e2147483647')",
            "timestamp(0).getHours('-9223372036854775808:00')",
            "timestamp(0).getHours('00:-9223372036854775808')",
            "'a'.matches(lists.range(5000).map(i, 'aaaa').join())",
            "'a'.matches(lists.range(400).map(i, '(').join())",
            "-(-9223372036854775808)",
            "-9223372036854775808 / -1",
            "-9223372036854775808 % -1",
            "math.abs(-9223372036854775808)",
            "timestamp('9999-12-31T23:59:59Z') + duration('1s')",
            "timestamp(0) - duration('-9223372036854775808ns')",
            "[1].slice(-1, 9223372036854775807)",
            "'a'[?optional.none()]",
            "lists.insertAtIndex([1], 9223372036854775807, 1)",
            "'a'.substring(9223372036854775807)",
        ] {
            assert!(matches!(value(text, &json!({})), Err(Unknown::Failed(_))), "{text}");
        }
    }

    #[test]
    fn no_value_is_deeper_than_can_be_gone_through() {
        for text in [
            format!("[1]{}", ".map(a, [[[[[[a]]]]]])".repeat(20)),
            format!("[1]{}", ".map(a, {'k': {'k': {'k': {'k': a}}}})".repeat(30)),
            format!("optional.of(1){}", ".optMap(a, optional.of(optional.of(a)))".repeat(60)),
            format!("[1]{}", ".map(a, [optional.of(a), optional.of([a])].first())".repeat(60)),
        ] {
            let Err(Unknown::Failed(why)) = value(&text, &json!({})) else { panic!("{text}") };
            assert!(why.contains("in one another"), "{text}: {why}");
        }
    }

    /// The deepest that may be written, and what is deeper: both within half of the stack that a task has.
    #[test]
    fn no_text_is_too_deep_for_the_stack() {
        let nested =
            |before: &str, after: &str, times: usize| format!("{}1{}", before.repeat(times), after.repeat(times));
        let mut texts = Vec::new();
        for times in [20, 40, 47, 60, 300] {
            for (before, after) in [
                ("(", ")"),
                ("[", "]"),
                ("{'k': ", "}"),
                ("-(1 + 2 * ", ")"),
                ("!(false || ", " == 1)"),
                ("false ? 1 : ", ""),
                ("1 + 2 * [1].map(a, ", ")[0]"),
                ("[1].map(a, true, ", ")"),
                ("[[1].all(a, ", " != 2)].size()"),
                ("cel.bind(a, ", ", a)"),
                ("optional.of(1).optMap(a, ", ")"),
                ("optional.none().orValue(", ")"),
                ("'%s'.format([", "])"),
            ] {
                texts.push(nested(before, after, times));
            }
        }
        for times in [10, 190, 250, 2000] {
            for part in [".map(a, a)", ".a", "[0]", " + 1", " == 1", ".or(a)", ".?a", " && 1"] {
                texts.extend([format!("parent{}", part.repeat(times)), format!("x{}", part.repeat(times))]);
            }
            texts.extend(["!", "-", "["].map(|sign| sign.repeat(times)));
        }
        let outcomes = std::thread::Builder::new()
            .stack_size(1 << 20)
            .spawn(move || {
                let one = |text: &String| Expression::compile(text).map(|compiled| seeing(&json!({})).value(&compiled));
                texts.iter().filter(|text| text.len() <= LONGEST).filter(|text| one(text).is_ok()).count()
            })
            .unwrap();
        assert!(outcomes.join().unwrap() > 30, "few were evaluated");
    }

    #[test]
    fn a_brief_evaluation_ends_soon_and_says_so() {
        let parent = json!({"list": (0..40_000).collect::<Vec<_>>()});
        let mut brief = Evaluation::new(true);
        brief.show(Name::Parent, &json!({"list": [1, 2, 3]}));
        let cheap = Expression::compile("parent.list.map(i, i + 1)").unwrap();
        assert!(brief.value(&cheap).is_ok() && !brief.is_over());
        let mut brief = Evaluation::new(true);
        brief.show(Name::Parent, &parent);
        assert!(brief.value(&cheap).is_err() && brief.is_over());
    }

    /// Of what an expression may be made, with the values of a fixed object at the ends.
    fn expression() -> impl Strategy<Value = String> {
        let leaf = prop::sample::select(vec![
            "1",
            "-3",
            "2.5",
            "3u",
            "'a'",
            "'b,c'",
            "true",
            "null",
            "[]",
            "{}",
            "parent.n",
            "parent.s",
            "parent.list",
            "parent.map",
            "parent.map.b",
            "parent.absent",
            "parent.list[0]",
            "quantity('1Gi')",
            "duration('1h')",
            "b'x'",
        ])
        .prop_map(str::to_owned);
        leaf.prop_recursive(4, 24, 3, |inner| {
            let two = (inner.clone(), inner.clone());
            let one = inner.clone();
            prop_oneof![
                (
                    two.clone(),
                    prop::sample::select(vec!["+", "-", "*", "/", "%", "==", "!=", "<", ">=", "&&", "||", "in"])
                )
                    .prop_map(|((a, b), operator)| format!("({a} {operator} {b})")),
                (
                    one.clone(),
                    prop::sample::select(vec![
                        "size",
                        "string",
                        "int",
                        "double",
                        "sort",
                        "distinct",
                        "sum",
                        "reverse",
                        "flatten",
                        "first",
                        "last",
                        "isSorted",
                        "min",
                        "max",
                        "upperAscii",
                        "trim",
                        "join",
                        "value",
                    ])
                )
                    .prop_map(|(a, method)| format!("({a}).{method}()")),
                (
                    two.clone(),
                    prop::sample::select(vec![
                        "contains",
                        "indexOf",
                        "split",
                        "join",
                        "format",
                        "matches",
                        "orValue",
                        "find",
                        "lastIndexOf",
                        "startsWith",
                    ])
                )
                    .prop_map(|((a, b), method)| format!("({a}).{method}({b})")),
                (
                    two.clone(),
                    prop::sample::select(vec!["sets.contains", "sets.intersects", "sets.equivalent", "math.greatest"])
                )
                    .prop_map(|((a, b), function)| format!("{function}({a}, {b})")),
                (two.clone(), prop::sample::select(vec!["map", "filter", "all", "exists", "exists_one"]))
                    .prop_map(|((a, b), what)| format!("({a}).{what}(i, {b})")),
                one.clone().prop_map(|a| format!("({a}).map(i, [i, i])")),
                one.clone().prop_map(|a| format!("'%s'.format([{a}])")),
                (one, two.clone()).prop_map(|(c, (a, b))| format!("({c} ? {a} : {b})")),
                two.clone().prop_map(|(a, b)| format!("[{a}, {b}]")),
                two.prop_map(|(a, b)| format!("{{'k': {a}, 'a': {b}}}")),
            ]
        })
    }

    fn object() -> impl Strategy<Value = Json> {
        let map = prop::collection::btree_map("[a-z]{1,3}", 0..9_i64, 0..20);
        (map, prop::collection::vec(any::<i16>(), 0..40), ".{0,20}", any::<i64>()).prop_map(|(map, list, s, n)| {
            let mut map = json!(map);
            map["b"] = json!({"x": list, "y": s});
            json!({"map": map, "list": list, "s": s, "n": n})
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// The same of the same: built twice, so that each hash has its own order, and on another thread.
        #[test]
        fn every_expression_has_one_value(text in expression(), parent in object()) {
            let Ok(compiled) = Expression::compile(&text) else { return Ok(()) };
            let first = seeing(&parent).value(&compiled);
            let again = serde_json::from_str::<Json>(&parent.to_string()).unwrap();
            prop_assert_eq!(&first, &value(&text, &again), "{}", text);
            let elsewhere = std::thread::spawn(move || value(&text, &again)).join().unwrap();
            prop_assert_eq!(first, elsewhere);
        }

        /// Whatever it goes through, and however often: what is spent is bounded by what is seen, and it ends.
        #[test]
        fn what_an_expression_costs_is_bounded(text in expression(), parent in object()) {
            let Ok(compiled) = Expression::compile(&text) else { return Ok(()) };
            let seen = seeing(&parent);
            let first = seen.value(&compiled);
            let once = seen.budget.spent();
            let again = seeing(&parent);
            prop_assert_eq!(first, again.value(&compiled));
            prop_assert_eq!(once, again.budget.spent(), "the count is of the work, and not of the time: {}", text);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,60}") {
            if let Ok(expression) = Expression::compile(&text) {
                let _ = seeing(&json!({})).value(&expression);
            }
        }
    }
}
