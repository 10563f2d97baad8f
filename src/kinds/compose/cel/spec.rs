//! What the specification of the language, and Kubernetes, say an expression means, by area. Each line of a table holds,
//! or has no value.

use serde_json::{Value as Json, json};

use super::{Evaluation, Expression, Halt, Name, functions, value::Value};

fn evaluate(text: &str) -> Result<Value, Halt> {
    let parent = json!({
        "n": 3, "whole": 1.0, "text": "x", "none": null, "list": [1, 2, 3], "map": {"a": 1, "b": {"c": "d"}},
        "words": ["b", "a"],
    });
    let expression = Expression::compile(text).unwrap_or_else(|why| panic!("{text}: {why}"));
    let mut evaluation = Evaluation::new(false);
    evaluation.show(Name::Parent, &parent);
    evaluation.evaluate(&expression)
}

fn hold(expressions: &[&str]) {
    for text in expressions {
        let value = evaluate(text);
        assert!(matches!(value, Ok(Value::Bool(true))), "{text}: {value:?}");
    }
}

fn fail(expressions: &[&str]) {
    for text in expressions {
        let value = evaluate(text);
        assert!(value.is_err(), "{text}: {value:?}");
    }
}

fn json(text: &str) -> Json {
    evaluate(text).unwrap().to_json().unwrap()
}

#[test]
fn numbers_of_all_types_lie_on_one_line() {
    hold(&[
        "1 == 1.0 && 1.0 == 1 && 1u == 1 && 1 == 1u && 1u == 1.0",
        "parent.whole == 1 && parent.n == 3.0 && parent.n == 3u",
        "1 != 1.5 && 2 > 1.5 && 1u < 1.5 && -1 < 0u && 18446744073709551615u > 9223372036854775807",
        "0.0 == -0.0 && 1.0 / 0.0 > 9223372036854775807",
        "[1, 2u] == [1.0, 2] && {'a': 1} == {'a': 1.0} && [[1]] == [[1u]]",
        "1 in [1.0] && 1.0 in [1, 2] && 1u in {1: 'a'} && {1: 'a'}[1.0] == 'a' && {1u: 'b'}[1] == 'b'",
        "!(double('NaN') == double('NaN')) && double('NaN') != double('NaN') && !(double('NaN') in [double('NaN')])",
        "1 != 'a' && 'a' != 1 && [1] != {} && null != false && null == null && parent.none == null",
        "math.greatest(1, 2.5) == 2.5 && math.least(3u, -1, 2.0) == -1",
    ]);
    fail(&["1 < 'a'", "null < 1", "[1] < [2]", "true < 1", "double('NaN') < 1.0", "1 + 1.0", "1 + 1u", "1u - 1"]);
}

#[test]
fn an_error_is_absorbed_by_what_decides_without_it() {
    hold(&[
        "true || 1 / 0 > 0",
        "1 / 0 > 0 || true",
        "!(false && parent.gone)",
        "!(parent.gone && false)",
        "parent.gone.x || parent.n || true",
        "parent.list.exists(i, 6 / (i - 1) == 6)",
        "!parent.list.all(i, 6 / (i - 1) == 7)",
        "true ? true : parent.gone",
        "!has(parent.gone) && has(parent.map.b.c) && !has(parent.map.b.d)",
        "cel.bind(unused, 1 / 0, true)",
        "optional.of(true).orValue(1 / 0)",
    ]);
    fail(&[
        "false || parent.gone",
        "parent.gone && true",
        "parent.list.exists(i, 6 / (i - 1) == 99)",
        "parent.list.all(i, 6 / (i - 1) > 0)",
        "parent.list.exists_one(i, 6 / (i - 1) == 6)",
        "[1 / 0, 1].size() == 2",
        "parent.gone ? true : true",
        "1 || false",
        "has(parent.gone.further)",
    ]);
}

#[test]
fn operators_bind_and_repeat_as_the_grammar_says() {
    hold(&[
        "!!true && !(!false == false) && --19 == 19 && -(-3) == 3 && - -1 == 1",
        "1 + 2 * 3 == 7 && 10 - 4 - 3 == 3 && 7 / 2 == 3 && -7 / 2 == -3 && -7 % 3 == -1 && 2 * 3 % 4 == 2",
        "true || false && false",
        "(false ? 1 : true ? 2 : 3) == 2",
        "1 < 2 == true && 1 in [1] == true",
        "-2.abs == 2 || true",
        "[1, 2,].size() == 2 && {'a': 1,}.size() == 1 // and a comment",
        "-9223372036854775808 == -9223372036854775807 - 1 && 0x1F == 31 && -0x10 == -16 && 1e3 == 1000.0 && .5 == 0.5",
    ]);
    fail(&["-true", "!1", "-'a'", "-1u", "!parent.n"]);
    for text in ["1 +", "(1", "[1", "{1}", "1 2", "a b", "1 ? 2", "x.", "'a' 'b'", "!-", "&& 1", "=", "1 = 1", "1u2"] {
        assert!(Expression::compile(text).is_err(), "{text}");
    }
}

#[test]
fn escapes_are_read_and_raw_texts_left_alone() {
    for (text, expected) in [
        (r"'it\'s'", "it's"),
        (r#""it\"s""#, "it\"s"),
        (r"'\a\b\f\n\r\t\v\\\?\`'", "\x07\x08\x0c\n\r\t\x0b\\?`"),
        (r"'\x41\u00fc\U0001F600\101'", "Aü😀A"),
        (r"r'\n' + R'\x'", r"\n\x"),
        ("'''a'b\n''c'''", "a'b\n''c"),
        (r#""""a"b""c""""#, "a\"b\"\"c"),
        ("r'''\\'''", "\\"),
        (r"'\303'", "Ã"),
        ("'''a\r\nb'''", "a\nb"),
        (r"string(b'\303\274') + string(b'ü')", "üü"),
        ("''", ""),
    ] {
        assert_eq!(json(text), json!(expected), "{text}");
    }
    hold(&[r"b'\xff'.size() == 1 && b'ÿ'.size() == 2 && '\xff'.size() == 1", r"br'\n' == b'\\n' && B'a' == b'a'"]);
    for text in
        [r"'\q'", r"'\x4'", r"'\u12'", r"'\ud800'", r"'\U00110000'", r"b'\u0041'", r"'\400'", "'a\nb'", "'''a", r"'\'"]
    {
        assert!(Expression::compile(text).is_err(), "{text}");
    }
}

#[test]
fn texts_are_counted_in_code_points() {
    hold(&[
        "size('ÿ') == 1 && 'äöü'.size() == 3 && '😀'.size() == 1 && size(b'ÿ') == 2",
        "'äbcäb'.indexOf('b') == 1 && 'äbcäb'.lastIndexOf('äb') == 3 && 'äb'.charAt(1) == 'b' && 'äb'.charAt(2) == ''",
        "'äöü'.substring(1, 2) == 'ö' && 'äöü'.substring(3) == '' && 'äöü'.reverse() == 'üöä'",
        "'aXbXc'.replace('X', '-', 1) == 'a-bXc' && 'abc'.replace('', '-') == '-a-b-c-' && 'a'.replace('a', 'b', 0) == 'a'",
        "'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'äb'.split('') == ['ä', 'b'] && 'a'.split(',', 0) == []",
        "'ÄB'.lowerAscii() == 'Äb' && ' \\t\\u00a0a '.trim() == 'a' && ['a', 'b'].join('-') == 'a-b'",
        "strings.quote('a\"b\\n') == '\"a\\\\\"b\\\\n\"'",
        "'hello'.indexOf('', 9) == 5 && 'hello'.lastIndexOf('l', 2) == 2 && 'hello'.indexOf('l', 9) == -1",
    ]);
    fail(&[
        "'a'.charAt(2)",
        "'a'.charAt(-1)",
        "'abc'.substring(2, 1)",
        "'abc'.substring(4)",
        "'a'.indexOf('a', -1)",
        "[1].join()",
    ]);
}

#[test]
fn what_does_not_fit_has_no_value() {
    fail(&[
        "9223372036854775807 + 1",
        "-9223372036854775808 - 1",
        "9223372036854775807 * 2",
        "-(-9223372036854775808)",
        "-9223372036854775808 / -1",
        "-9223372036854775808 % -1",
        "1 / 0",
        "1 % 0",
        "1u / 0u",
        "0u - 1u",
        "18446744073709551615u + 1u",
        "5.0 % 2.0",
        "int(9223372036854775808.0)",
        "int(double('NaN'))",
        "uint(-1)",
        "uint(-1.0)",
        "int(18446744073709551615u)",
        "math.abs(-9223372036854775808)",
        "[9223372036854775807, 1].sum()",
        "duration('2562047h') + duration('2562047h')",
        "timestamp('9999-12-31T23:59:59Z') + duration('1s')",
        "timestamp('0001-01-01T00:00:00Z') - duration('1ns')",
        "timestamp('9999-12-31T00:00:00Z') - timestamp('0001-01-01T00:00:00Z')",
        "math.bitShiftLeft(1, -1)",
    ]);
    hold(&["1.0 / 0.0 == double('Infinity')", "math.isNaN(0.0 / 0.0)", "1e308 * 10.0 == double('inf')"]);
}

#[test]
fn conversions_say_what_they_cannot() {
    hold(&[
        "int('-7') == -7 && int('+3') == 3 && int(2.9) == 2 && int(-2.9) == -2 && int(timestamp(5)) == 5",
        "uint('3') == 3u && uint(3.9) == 3u && double('1.5') == 1.5 && double(3) == 3.0 && double('-inf') < 0.0",
        "bool('true') && !bool('FALSE') && bool('1') && bool(true)",
        "string(true) == 'true' && string(1.0) == '1' && string(1e21) == '1e+21' && string(1e-5) == '1e-05' && string(12u) == '12'",
        "string(1234567.0) == '1.234567e+06' && string(0.5) == '0.5' && string(b'a') == 'a' && bytes('ä') == b'ä'",
        "string(duration('1h30m0.5s')) == '5400.5s' && string(duration('-1ms')) == '-0.001s' && string(duration('0')) == '0s'",
        "string(timestamp('2026-01-02T03:04:05.120Z')) == '2026-01-02T03:04:05.12Z'",
        "string(timestamp('2026-01-02T03:04:05+02:00')) == '2026-01-02T03:04:05+02:00'",
        "timestamp(0) == timestamp('1970-01-01T00:00:00Z') && timestamp('2026-01-01T02:00:00+02:00') == timestamp('2026-01-01T00:00:00Z')",
        "type(1) == int && type(1u) == uint && type('a') == string && type(b'') == bytes && type(null) == null_type",
        "type([]) == list && type({}) == map && type(type(1)) == type && type(true) != int && type(parent.whole) == double",
        "type(timestamp(0)) == google.protobuf.Timestamp && type(duration('1s')) == google.protobuf.Duration",
        "type(optional.none()) == optional_type && dyn(1) == 1",
    ]);
    fail(&[
        "int('1.5')",
        "int(' 1')",
        "int('')",
        "int('0x1')",
        "uint('-1')",
        "uint('+1')",
        "double('a')",
        "double('1e400')",
        "bool('yes')",
        "bool(1)",
        "string(b'\\xff')",
        "string([1])",
        "string(null)",
        "bytes(1)",
        "timestamp('2026-01-01')",
        "timestamp('2026-02-30T00:00:00Z')",
        "duration('1d')",
        "duration('1')",
        "int(null)",
        "timestamp(253402300800)",
    ]);
}

#[test]
fn times_are_of_their_zone() {
    hold(&[
        "timestamp('2026-01-02T03:04:05.678Z').getHours() == 3 && timestamp('2026-01-02T03:04:05Z').getMonth() == 0",
        "timestamp('2026-01-02T03:04:05Z').getHours('02:00') == 5 && timestamp('2026-01-02T03:04:05Z').getHours('-03:30') == 23",
        "timestamp('2026-01-02T03:04:05Z').getDate('-03:30') == 1 && timestamp('2026-01-02T03:04:05Z').getDayOfMonth() == 1",
        "timestamp('2026-07-01T12:00:00Z').getHours('Europe/Berlin') == 14 && timestamp('2026-01-01T12:00:00Z').getHours('Europe/Berlin') == 13",
        "timestamp('2024-12-31T00:00:00Z').getDayOfYear() == 365 && timestamp('2026-11-29T00:00:00Z').getDayOfWeek() == 0",
        "timestamp('2026-01-01T00:00:00.678Z').getMilliseconds() == 678 && timestamp('1969-12-31T23:59:59.5Z').getSeconds() == 59",
        "timestamp('2026-01-01T00:00:00+02:00').getHours() == 22 && timestamp('9999-12-31T23:00:00Z').getFullYear('+02:00') == 10000",
        "duration('90m').getHours() == 1 && duration('90m').getMinutes() == 90 && duration('-1.5s').getMilliseconds() == -1500",
        "timestamp('2026-01-01T00:00:00Z') + duration('36h') == timestamp('2026-01-02T12:00:00Z')",
        "timestamp('2026-01-02T00:00:00Z') - timestamp('2026-01-01T00:00:00Z') == duration('24h')",
        "duration('1h') > duration('59m') && -duration('1h') < duration('0s') && [duration('1h'), duration('1m')].sum() == duration('61m')",
    ]);
    fail(&[
        "timestamp(0).getHours('Europe/Atlantis')",
        "timestamp(0).getHours('europe/berlin')",
        "timestamp(0).getHours('Local')",
    ]);
}

#[test]
fn formats_are_those_of_the_specification() {
    for (text, expected) in [
        ("'%s %s %s'.format(['a', 1, true])", "a 1 true"),
        ("'%s'.format([[1, 'a', 1.5, null, b'x']])", "[1, a, 1.5, null, x]"),
        ("'%s'.format([{'b': 1, 'a': [2], '10': 3}])", "{10: 3, a: [2], b: 1}"),
        ("'%d %d %d'.format([-1, 2u, 1.5])", "-1 2 1.5"),
        ("'%.2f %f'.format([1234.567, 1])", "1234.57 1.000000"),
        ("'%.1f %.0f'.format([0.25, 2.5])", "0.2 2"),
        ("'%e %.1e'.format([1234.5, 0.00012])", "1.234500e+03 1.2e-04"),
        ("'%b %o %x %X %b'.format([5, 8, 255, 255, true])", "101 10 ff FF 1"),
        ("'%b %x'.format([-5, -255])", "-101 -ff"),
        ("'%x %X'.format(['äz', b'\\xab'])", "c3a47a AB"),
        ("'%s %f %d'.format([1.0 / 0.0, 0.0 / 0.0, -1.0 / 0.0])", "Infinity NaN -Infinity"),
        ("'%s %s'.format([duration('1.5s'), timestamp('2026-01-01T01:00:00+01:00')])", "1.5s 2026-01-01T00:00:00Z"),
        ("'100%% %s'.format([int])", "100% int"),
        ("'%s'.format([1, 2])", "1"),
    ] {
        assert_eq!(json(text), json!(expected), "{text}");
    }
    fail(&[
        "'%s'.format([])",
        "'%d'.format(['a'])",
        "'%f'.format(['a'])",
        "'%q'.format([1])",
        "'%'.format([1])",
        "'%.f'.format([1.0])",
        "'%.101f'.format([1.0])",
        "'%x'.format([1.5])",
        "'%s'.format([optional.none()])",
        "'%.2'.format([1.0])",
    ]);
}

#[test]
fn mappings_have_keys_of_several_types() {
    hold(&[
        "{1: 'a', 'b': 2, true: 3}.size() == 3 && {1: 'a', 'b': 2, true: 3}[true] == 3",
        "!('x' in {1: 2}) && !(1.5 in {1: 2}) && 'a' in parent.map && parent.map['b'].c == 'd'",
        "{'a': 1, 'b': 2} == {'b': 2.0, 'a': 1u} && {'a': 1} != {'a': 1, 'b': 1} && {'a': null} != {}",
        "{'b': 1, 'a': 2}.map(k, k) == ['a', 'b'] && {'b': 1}.exists(k, k == 'b')",
        "{'a': 1}.merge({'a': 2, 'b': 3}) == {'a': 2, 'b': 3}",
        "parent.list[1.0] == 2 && parent.list[1u] == 2",
    ]);
    fail(&[
        "{1: 'a', 1u: 'b'}",
        "{'a': 1, 'a': 2}",
        "{null: 1}",
        "{1.5: 1}",
        "{[1]: 1}",
        "{'a': 1}['b']",
        "parent.list[1.5]",
        "parent.list['0']",
    ]);
}

#[test]
fn fields_that_may_be_missing_are_optional() {
    hold(&[
        "parent.?gone.orValue(5) == 5 && parent.?n.orValue(5) == 3 && parent.map.?b.c.orValue('') == 'd'",
        "parent.?gone.further.still.orValue('none') == 'none' && !parent.map.?b.?zz.hasValue() && parent.map[?'a'].value() == 1",
        "parent.list[?0].orValue(0) == 1 && parent.list[?9].orValue(0) == 0 && !parent.text.?x.hasValue()",
        "optional.none() == optional.none() && optional.of(1) == optional.of(1.0) && optional.of(1) != optional.none()",
        "optional.ofNonZeroValue('') == optional.none() && optional.ofNonZeroValue([]).or(optional.of(1)).value() == 1",
        "parent.?n.optMap(n, n + 1) == optional.of(4) && parent.?gone.optMap(n, n + 1) == optional.none()",
        "parent.?map.optFlatMap(m, m.?a).value() == 1 && !parent.?map.optFlatMap(m, m.?zz).hasValue()",
        "[?parent.?gone, ?parent.?n, 1] == [3, 1] && {?'a': parent.?gone, ?'b': parent.?n} == {'b': 3}",
        "[1, 2].first().value() == 1 && [1, 2].last().value() == 2 && ![].last().hasValue()",
        "[optional.of(1), optional.none()].unwrapOpt() == [1] && optional.unwrap([optional.of(2)]) == [2]",
        "has(parent.?map.a)",
        "parent.map.?a.optMap(a, string(a)).orValue('none') == '1'",
        "!{}[?1.5].hasValue() && {1: 2}[?1.0].value() == 2",
    ]);
    fail(&["optional.none().value()", "parent.gone.?a", "[?1]", "{?'a': 1}", "parent.list.?a"]);
    let wrong = evaluate("parent.?n").unwrap().to_json().unwrap_err();
    assert!(wrong.contains("orValue"), "{wrong}");
}

#[test]
fn macros_have_one_variable_or_two() {
    hold(&[
        "[1, 2, 3].all(i, i > 0) && [].all(i, false) && ![].exists(i, true) && [1, 2].exists_one(i, i > 1)",
        "[5, 6].all(i, v, v == i + 5) && {'a': 1}.exists(k, v, k == 'a' && v == 1) && [1, 1].existsOne(i, v, i == 1)",
        "[1, 2, 3].filter(i, i % 2 == 1) == [1, 3] && [1, 2, 3].map(i, i > 1, i * 2) == [4, 6]",
        "[5, 6].transformList(i, v, i * v) == [0, 6] && {'b': 1, 'a': 2}.transformList(k, v, v > 1, k) == ['a']",
        "[5, 6].transformMap(i, v, v * 2) == {0: 10, 1: 12} && {'a': 1, 'b': 2}.transformMap(k, v, v > 1, k + 'x') == {'b': 'bx'}",
        "{'a': 'x'}.transformMapEntry(k, v, {v: k}) == {'x': 'a'} && ['a'].transformMapEntry(i, v, {v: i}) == {'a': 0}",
        "cel.bind(x, parent.n * 2, x + x) == 12 && cel.bind(parent, 1, parent) == 1",
        "[{'n': 2}, {'n': 1}].sortBy(e, e.n).map(e, e.n) == [1, 2] && ['b', 'a'].sort() == ['a', 'b'] && parent.words.sort()[0] == 'a'",
        "[1, 2].map(x, [3].map(y, x * y)) == [[3], [6]] && [1].map(x, [2].map(x, x)) == [[2]]",
        "[[1], [2, [3]]].flatten() == [1, 2, [3]] && [[1, [2, [3]]]].flatten(2) == [1, 2, [3]] && [3, 1].reverse() == [1, 3]",
        "[1, 1.0, 'a', 1u, 'a'].distinct() == [1, 'a'] && lists.range(3) == [0, 1, 2] && [1, 2, 3].slice(1, 2) == [2]",
        "[1, 2].isSorted() && [1, 3, 2].max() == 3 && [].sum() == 0 && [1.5, 2.0].sum() == 3.5 && [1, 2, 1].lastIndexOf(1) == 2",
        "lists.setAtIndex([1, 2], 0, 9) == [9, 2] && lists.insertAtIndex([1], 1, 2) == [1, 2] && lists.removeAtIndex([1, 2], 0) == [2]",
        "sets.contains([1, 2], [2.0]) && sets.equivalent([1, 1], [1u]) && !sets.intersects([1], [2]) && sets.contains([], [])",
    ]);
    fail(&[
        "[{'a': 1}].sortBy(e, e)",
        "[1, 'a'].sort()",
        "[null, null].sort()",
        "{'a': 1}.sortBy(k, k)",
        "1.map(x, x)",
        "'a'.all(x, true)",
        "['a', 'a'].transformMapEntry(i, v, {v: i})",
        "[1].map(x, x, x)",
        "[1].slice(0, 2)",
        "lists.removeAtIndex([], 0)",
        "[].max()",
        "[1].filter(x, 1)",
    ]);
}

#[test]
fn patterns_are_those_of_re2() {
    hold(&[
        "'abc'.matches('b') && !'abc'.matches('^b') && 'a1b22'.findAll('[0-9]+') == ['1', '22'] && 'a1b2'.findAll('\\\\d', 1) == ['1']",
        "!'٣'.matches('\\\\d') && !'ä'.matches('\\\\w') && 'ä'.matches('\\\\pL') && 'ab'.find('z') == '' && 'K'.matches('(?i)k')",
        "'a[b'.matches('[a[b]') && 'a&b'.matches('[x&&y]') && 'a.b'.matches('\\\\Q.\\\\E') && 'a]'.matches('[]]') && 'x{,2}'.matches('x{,2}')",
    ]);
    for text in [
        "'a'.matches('a**')",
        "'a'.find('(?x)a')",
        "'a'.matches('a{1001}')",
        "'a'.matches('(?=a)')",
        "'a'.matches('\\\\1')",
    ] {
        assert!(Expression::compile(text).is_err(), "{text}");
    }
    fail(&["'a'.matches('(' + 'x')", "'a'.matches(1)"]);
}

#[test]
fn kubernetes_functions_mean_what_they_mean_there() {
    hold(&[
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('1000m') == quantity('1') && quantity('1.5').sign() == 1",
        "quantity('1k').asInteger() == 1000 && !quantity('1.5').isInteger() && !quantity('99999999999999999999').isInteger()",
        "quantity('1Ki').add(quantity('24')).compareTo(quantity('1048')) == 0 && quantity('1').sub(3).asInteger() == -2",
        "quantity('50k').asApproximateFloat() == 50000.0 && isQuantity('10Mi') && !isQuantity('10Mo') && !isQuantity('')",
        "ip('::ffff') == ip('::FFFF') && ip('10.0.0.1').family() == 4 && !isIP('::ffff:1.2.3.4') && !isIP('1.2.3') && ip('127.0.0.1').isLoopback()",
        "ip.isCanonical('2001:db8::1') && !ip.isCanonical('2001:DB8::1') && string(cidr('10.1.2.3/8').masked()) == '10.0.0.0/8'",
        "cidr('10.0.0.0/8').containsIP('10.9.9.9') && !cidr('10.0.0.0/8').containsIP(ip('11.0.0.1')) && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
        "cidr('10.1.2.3/24').ip() == ip('10.1.2.3') && cidr('::/0').prefixLength() == 0 && !isCIDR('10.0.0.0/33')",
        "url('https://u@h.example:80/a%2Fb?c=d&c=e').getHost() == 'h.example:80' && url('https://h:80/').getPort() == '80'",
        "url('https://h/a%2Fb?c=d&c=e').getEscapedPath() == '/a%2Fb' && url('https://h/?c=d&c=e').getQuery() == {'c': ['d', 'e']}",
        "url('/p').getHost() == '' && url('/p').getScheme() == '' && isURL('https://h') && !isURL('../p') && !isURL('h')",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-rc.1').isLessThan(semver('1.0.0')) && isSemver('1.0.0+a')",
        "semver('v1.2', true).minor() == 2 && !isSemver('v1.2') && semver('1.0.0+a') == semver('1.0.0+b') && semver('1.0.0-2').compareTo(semver('1.0.0-a')) == -1",
        "!format.dns1123Label().validate('my-name').hasValue() && format.named('uuid').hasValue() && !format.named('x').hasValue()",
        "format.dns1123Label().validate('My.name').value().size() == 1 && format.dns1123Label().validate('a.b').value() == ['must not contain dots']",
        "format.date().validate('2026-02-30').hasValue() && !format.datetime().validate('2026-02-28T01:02:03Z').hasValue()",
        "math.bitShiftRight(-1024, 3) == 2305843009213693824 && math.bitAnd(-1, 5) == 5 && math.sign(-2.5) == -1.0 && math.sqrt(16) == 4.0",
        "math.round(-1.5) == -2.0 && math.trunc(-1.9) == -1.0 && math.isInf(1.0 / 0.0) && math.bitShiftLeft(1, 64) == 0",
    ]);
    fail(&[
        "quantity('x')",
        "ip('1.2.3.400')",
        "cidr('1.2.3.4')",
        "url('nope')",
        "semver('1.2')",
        "quantity('1') == 1",
        "quantity('1') + quantity('1')",
    ]);
}

#[test]
fn json_base64_and_hashes() {
    hold(&[
        "json.unmarshal('{\"a\": [1, 2.5, null]}') == {'a': [1, 2.5, null]} && json.marshal({'b': 1, 'a': ['x']}) == '{\"a\":[\"x\"],\"b\":1}'",
        "base64.encode(b'hello') == 'aGVsbG8=' && base64.decode('aGVsbG8') == b'hello' && base64.decode('aGVs\\nbG8=') == b'hello'",
        "hash.sha256('') == 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'",
        "hash.sha256('abc') == hash.sha256(b'abc') && hash.fnv64a('a') == 'af63dc4c8601ec8c'",
    ]);
    fail(&[
        "json.unmarshal('{')",
        "json.marshal(timestamp(0))",
        "base64.decode('!')",
        "base64.decode('YQ=')",
        "hash.sha256(1)",
    ]);
}

/// As deep as they may be, in each way, on a thread as small as those of the runtime.
#[test]
fn the_deepest_expressions_fit_the_stack() {
    let deep = |count: usize, open: &str, close: &str| format!("{}1{}", open.repeat(count), close.repeat(count));
    for text in [
        format!("1{}", " + 1".repeat(198)),
        format!("true{}", " && true".repeat(450)),
        format!("{}false", "!".repeat(4000)),
        deep(47, "(", ")"),
        deep(47, "[", "]"),
        deep(23, "[1].map(x, [", "])"),
        deep(46, "type(", ")"),
        deep(23, "cel.bind(x, [", "], x)"),
        format!("{}1", "true ? 1 : ".repeat(47)),
        format!("dyn([]){}", ".map(x, x)".repeat(190)),
    ] {
        assert!(evaluate(&text).is_ok(), "{text}");
        let larger = text.replace('1', "((((((((((((((((((((((((1))))))))))))))))))))))))");
        if let Err(why) = Expression::compile(&larger) {
            assert!(!why.is_empty(), "{larger}");
        }
    }
    for text in [deep(49, "(", ")"), format!("1{}", " + 1".repeat(300)), format!("{}1", "true ? 1 : ".repeat(60))] {
        assert!(Expression::compile(&text).is_err(), "{text}");
    }
}

#[test]
fn the_page_names_every_function_and_its_examples_compile() {
    let page = include_str!("../../../../docs/compose.md");
    for name in functions::names() {
        let short = name.rsplit('.').next().unwrap_or(name);
        let is_named = ["`", "(", "."].iter().any(|end| page.contains(&format!("{short}{end}")));
        assert!(is_named || name.starts_with("format."), "docs/compose.md does not name {name}");
    }
    let (_, language) = page.split_once("## The language").unwrap();
    let examples = language.split("```yaml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut compiled = 0;
    for line in examples.lines().filter(|line| line.contains("${")) {
        let (begin, end) = (line.find("${").unwrap() + 2, line.rfind('}').unwrap());
        assert!(Expression::compile(&line[begin..end]).is_ok(), "{line}");
        compiled += 1;
    }
    assert_eq!(compiled, 5);
}
