//! Our evaluation beside cel-go's, over expressions that are made by chance: each has to have the same value in both, or
//! none in both. Each case is made from a number alone, which a failure names, with an expression as small as it can be.

use std::fmt::Write as _;

use fastrand::Rng;
use leasehold_cluster::CelGo;
use serde_json::{Value as Json, json};

use super::{
    Evaluation, Expression, Halt, Name,
    functions::encode::write_base64,
    value::{Key, Value},
};

/// How each type may be written: `{type}` is an expression of that type, `{type|$a:type}` one that sees a variable besides.
/// Where Go goes through a mapping in an order of its own, what is asked does not depend on it.
#[rustfmt::skip]
const RULES: &[(&str, &[&str])] = &[
    ("bool", &[
        "{bool} && {bool}", "{bool} || {bool}", "!{bool}", "!!{bool}", "({bool} ? {bool} : {bool})", "{int} == {int}",
        "{int} < {int}", "{int} >= {uint}", "{int} == {double}", "{uint} != {double}", "{double} <= {int}",
        "{uint} > {double}", "{double} < {double}", "{string} == {string}", "{string} < {string}",
        "{bytes} == {bytes}", "{bytes} > {bytes}", "{duration} < {duration}", "{time} <= {time}", "{time} == {time}",
        "{bool} == {bool}", "{bool} < {bool}", "{li} == {li}", "{ld} == {ld}", "{ms} == {ms}", "{md} == {md}",
        "{dyn} == {dyn}", "{dyn} != {dyn}", "{type} == {type}", "{oi} == {oi}", "{oi} != {oi}", "{od} == {od}",
        "{int} in {li}", "{double} in {li}", "{string} in {ls}", "{dyn} in {ld}", "{string} in {ms}", "{int} in {mi}",
        "{double} in {mi}", "{uint} in {mi}", "has(parent.i)", "has(parent.gone)", "has({md}.a)", "has(parent.m.a)",
        "has({md}.a.b)", "has(parent.s.x)", "{string}.contains({string})", "{string}.startsWith({string})",
        "{string}.endsWith({string})", "{string}.matches({re})", "bool({booltext})", "dyn({bool})",
        "{li}.all($a, {bool|$a:int})", "{li}.exists($a, {bool|$a:int})", "{li}.exists_one($a, {bool|$a:int})",
        "{ls}.all($a, {bool|$a:string})", "{ls}.exists_one($a, {bool|$a:string})", "{ld}.exists($a, {bool|$a:dyn})",
        "{ms}.all($a, {bool|$a:string})", "{ms}.exists($a, {bool|$a:string})", "{mi}.exists_one($a, {bool|$a:int})",
        "{li}.all($a, $b, {bool|$a:int,$b:int})", "{ls}.exists($a, $b, {bool|$a:int,$b:string})",
        "{ms}.all($a, $b, {bool|$a:string,$b:int})", "{ms}.exists($a, $b, {bool|$a:string,$b:int})",
        "{ms}.existsOne($a, $b, {bool|$a:string,$b:int})", "{ld}.exists_one($a, $b, {bool|$a:int,$b:dyn})",
        "cel.bind($a, {int}, {bool|$a:int})", "cel.bind($a, {dyn}, {bool|$a:dyn})", "sets.contains({li}, {li})",
        "sets.equivalent({ld}, {ld})", "sets.intersects({ls}, {ls})", "dyn({li}).isSorted()", "dyn({ls}).isSorted()",
        "{li}.includes({int})", "{ld}.includes({dyn})", "{string}.includes({string})", "math.isNaN({double})",
        "math.isInf({double})", "math.isFinite({double})", "{oi}.hasValue()", "{os}.hasValue()", "{od}.hasValue()",
        "{quantity}.isGreaterThan({quantity})", "{quantity}.isLessThan({quantity})",
        "{quantity}.compareTo({quantity}) == 0", "quantity({qtext}) == quantity({qtext})", "{quantity}.isInteger()",
        "isQuantity({qtext})", "isQuantity({string})", "isIP({iptext})", "isCIDR({cidrtext})",
        "ip.isCanonical({iptext})", "{ip}.isLoopback()", "{ip}.isUnspecified()", "{ip}.isGlobalUnicast()",
        "{ip}.isLinkLocalUnicast()", "{ip}.isLinkLocalMulticast()", "{ip} == {ip}", "{cidr}.containsIP({ip})",
        "{cidr}.containsIP({iptext})", "{cidr}.containsCIDR({cidr})", "{cidr}.containsCIDR({cidrtext})",
        "{cidr} == {cidr}", "isURL({urltext})", "{url} == {url}", "isSemver({vtext})", "isSemver({vtext}, {bool})",
        "{semver}.isLessThan({semver})", "{semver}.isGreaterThan({semver})", "{semver} == {semver}",
    ]),
    ("int", &[
        "({int} + {int})", "({int} - {int})", "{int} * {int}", "{int} / {int}", "{int} % {int}", "-({int})",
        "--{int}", "({bool} ? {int} : {int})", "size({string})", "{string}.size()", "size({bytes})", "size({li})",
        "{ls}.size()", "size({md})", "int({double})", "int({uint})", "int({numtext})", "int({time})",
        "int({duration})", "dyn({int})", "{string}.indexOf({string})", "{string}.indexOf({string}, {small})",
        "{string}.lastIndexOf({string})", "{string}.lastIndexOf({string}, {small})", "{li}[{small}]",
        "{ms}[{string}]", "{mi}[{int}]", "{ms}.a", "dyn({li}).sum()", "dyn({li}).min()", "dyn({li}).max()",
        "{li}.indexOf({int})", "{li}.lastIndexOf({int})", "{ls}.indexOf({string})", "math.greatest({int}, {int})",
        "math.least({int}, {int}, {int})", "math.abs({int})", "math.sign({int})", "math.bitAnd({int}, {int})",
        "math.bitOr({int}, {int})", "math.bitXor({int}, {int})", "math.bitNot({int})",
        "math.bitShiftLeft({int}, {small})", "math.bitShiftRight({int}, {small})", "{time}.getFullYear()",
        "{time}.getMonth({tz})", "{time}.getDate({tz})", "{time}.getDayOfMonth({tz})", "{time}.getDayOfYear({tz})",
        "{time}.getDayOfWeek({tz})", "{time}.getHours({tz})", "{time}.getHours()", "{time}.getMinutes({tz})",
        "{time}.getSeconds()", "{time}.getMilliseconds()", "{duration}.getHours()", "{duration}.getMinutes()",
        "{duration}.getSeconds()", "{duration}.getMilliseconds()", "{oi}.value()", "{oi}.orValue({int})",
        "cel.bind($a, {int}, {int|$a:int})", "cel.bind($a, {ls}, {int|$a:ls})", "{quantity}.sign()",
        "{quantity}.asInteger()", "{quantity}.compareTo({quantity})", "{ip}.family()", "{cidr}.prefixLength()",
        "{semver}.major()", "{semver}.minor()", "{semver}.patch()", "{semver}.compareTo({semver})",
        "{li}.first().orValue({int})", "{ld}.flatten().size()",
    ]),
    ("uint", &[
        "{uint} + {uint}", "({uint} - {uint})", "{uint} * {uint}", "{uint} / {uint}", "{uint} % {uint}",
        "uint({int})", "uint({double})", "uint({numtext})", "math.bitAnd({uint}, {uint})", "math.bitNot({uint})",
        "math.abs({uint})", "math.bitShiftLeft({uint}, {small})", "math.bitShiftRight({uint}, {small})",
        "math.sign({uint})",
    ]),
    ("double", &[
        "({double} + {double})", "({double} - {double})", "{double} * {double}", "{double} / {double}", "-({double})",
        "double({int})", "double({uint})", "double({numtext})", "math.ceil({double})", "math.floor({double})",
        "math.round({double})", "math.trunc({double})", "math.abs({double})", "math.sign({double})",
        "math.sqrt({int})", "math.sqrt({double})", "math.greatest({double}, {double})",
        "{quantity}.asApproximateFloat()",
    ]),
    ("string", &[
        "{string} + {string}", "({bool} ? {string} : {string})", "string({int})", "string({uint})",
        "string({double})", "string({bool})", "string({bytes})", "string({duration})", "string({time})",
        "string({ip})", "string({cidr})", "{string}.charAt({small})", "{string}.substring({small})",
        "{string}.substring({small}, {small})", "{string}.lowerAscii()", "{string}.upperAscii()", "{string}.trim()",
        "{string}.reverse()", "{string}.replace({string}, {string})", "{string}.replace({string}, {string}, {small})",
        "{ls}.join()", "{ls}.join({string})", "strings.quote({string})", "{ls}[{small}]", "dyn({ls}).max()",
        "{os}.orValue({string})", "{string}.find({re})", "'%s'.format([{dyn}])", "'%s|%s'.format([{ld}, {md}])",
        "'%d'.format([{int}])", "'%.2f'.format([{double}])", "'%f'.format([{double}])", "'%e'.format([{double}])",
        "'%.3e'.format([{double}])", "'%b %o %x %X'.format([{int}, {int}, {int}, {uint}])", "'%x'.format([{string}])",
        "'%X'.format([{bytes}])", "'%b'.format([{bool}])", "'%d%%'.format([{double}])", "'%s'.format([{time}])",
        "'%s'.format([{duration}])", "{string}.format([{dyn}])", "{string}.format([{int}, {string}])",
        "base64.encode({bytes})", "{url}.getHost()", "{url}.getHostname()", "{url}.getPort()", "{url}.getScheme()",
        "{url}.getEscapedPath()", "cel.bind($a, {string}, {string|$a:string})", "dyn({string})",
    ]),
    ("bytes", &[
        "{bytes} + {bytes}", "bytes({string})", "base64.decode({b64})", "base64.decode(base64.encode({bytes}))",
    ]),
    ("duration", &[
        "{duration} + {duration}", "({duration} - {duration})", "{time} - {time}", "duration({durtext})",
        "-({duration})", "duration(string({duration}))", "[{duration}, {duration}].sum()",
    ]),
    ("time", &[
        "{time} + {duration}", "{duration} + {time}", "{time} - {duration}", "timestamp({timetext})",
        "timestamp({int})", "timestamp(string({time}))", "timestamp({time})",
    ]),
    ("li", &[
        "[{int}, {int}]", "{li} + {li}", "{li}.map($a, {int|$a:int})", "{li}.map($a, {bool|$a:int}, {int|$a:int})",
        "{li}.filter($a, {bool|$a:int})", "{li}.sort()", "{li}.distinct()", "{li}.reverse()",
        "[{li}, {li}].flatten()", "lists.range({small})", "{li}.slice({small}, {small})",
        "{li}.sortBy($a, {int|$a:int})", "{ls}.map($a, {int|$a:string})",
        "{li}.transformList($a, $b, {int|$a:int,$b:int})",
        "{li}.transformList($a, $b, {bool|$a:int,$b:int}, {int|$a:int,$b:int})", "[?{oi}, {int}]",
        "[{oi}, {oi}].unwrapOpt()", "({bool} ? {li} : {li})", "{ms}.map($a, {int|$a:string}).sort()",
    ]),
    ("ls", &[
        "[{string}, {string}]", "{ls} + {ls}", "{string}.split({string})", "{string}.split({string}, {small})",
        "{ls}.map($a, {string|$a:string})", "{ls}.filter($a, {bool|$a:string})", "{ls}.sort()", "{ls}.distinct()",
        "{ls}.reverse()", "{li}.map($a, {string|$a:int})", "{string}.findAll({re})",
        "{string}.findAll({re}, {small})", "{ls}.sortBy($a, {int|$a:string})",
        "{li}.sortBy($a, {string|$a:int}).map($a, string(dyn($a)))", "[?{os}]",
        "{ls}.transformList($a, $b, {string|$a:int,$b:string})", "{ms}.map($a, $a).sort()",
    ]),
    ("ld", &[
        "[{dyn}, {dyn}]", "[{int}, {double}, {string}]", "{ld} + {ld}", "{ld}.map($a, {dyn|$a:dyn})",
        "{ld}.distinct()", "{ld}.filter($a, {bool|$a:dyn})", "[{ld}, {dyn}].flatten({small})",
        "[[{ld}], {li}].flatten(2)", "{ld}.reverse()", "[?{od}, {dyn}]", "[{li}, {ls}]",
    ]),
    ("ms", &[
        "{{'a': {int}}}", "{{'a': {int}, 'b': {int}}}", "{{?'a': {oi}, 'c': {int}}}",
        "{ms}.transformMap($a, $b, {int|$a:string,$b:int})",
        "{ms}.transformMap($a, $b, {bool|$a:string,$b:int}, {int|$a:string,$b:int})",
        "{ms}.transformMapEntry($a, $b, {{$a + 'x': {int|$a:string,$b:int}}})",
        "{ls}.transformMapEntry($a, $b, {{string($a) + $b: {int|$a:int,$b:string}}})",
    ]),
    ("mi", &[
        "{{1: {int}}}", "{{{=small}: {int}}}", "{li}.transformMap($a, $b, {int|$a:int,$b:int})",
        "{{2: {int}, 3: {int}}}",
    ]),
    ("md", &[
        "{{'a': {dyn}}}", "{{'a': {md}}}", "{{?'a': {od}}}", "{{true: {dyn}}}",
    ]),
    ("oi", &[
        "optional.of({int})", "optional.none()", "optional.ofNonZeroValue({int})", "{li}[?{small}]",
        "{ms}[?{string}]", "{ms}.?a", "parent.?i", "parent.?gone", "parent.?m.a", "parent.m.?zz", "{oi}.or({oi})",
        "{oi}.optMap($a, {int|$a:int})", "{oi}.optFlatMap($a, {oi|$a:int})", "{li}.first()", "{li}.last()",
        "optional.of({ms}).a", "optional.of({li})[{small}]", "parent.?gone.further",
    ]),
    ("os", &[
        "optional.of({string})", "optional.ofNonZeroValue({string})", "{ls}[?{small}]", "parent.?s",
        "{oi}.optMap($a, {string|$a:int})", "{ls}.last()",
    ]),
    ("od", &[
        "optional.of({dyn})", "optional.ofNonZeroValue({dyn})", "{md}.?a", "{md}.?a.b", "{ld}[?{small}]",
        "parent.?s.x",
    ]),
    ("dyn", &[
        "{int}", "{uint}", "{double}", "{string}", "{bool}", "{bytes}", "{li}", "{ld}", "{md}", "{ms}", "{duration}",
        "{time}", "{type}", "null", "dyn({int})", "{ld}[{small}]", "{md}.a", "{md}['a']", "{od}.value()",
        "({bool} ? {dyn} : {dyn})", "math.greatest({int}, {double})", "math.least({uint}, {double}, {int})",
        "parent.deep[{small}]", "parent.deep",
    ]),
    ("type", &[
        "type({dyn})", "type({oi})", "type({quantity})", "type({ip})", "type({type})", "type({semver})",
        "type({url})",
    ]),
    ("quantity", &[
        "quantity({qtext})", "{quantity}.add({quantity})", "{quantity}.sub({quantity})", "{quantity}.add({int})",
        "{quantity}.sub({int})",
    ]),
    ("ip", &[
        "ip({iptext})", "{cidr}.ip()",
    ]),
    ("cidr", &[
        "cidr({cidrtext})", "{cidr}.masked()",
    ]),
    ("url", &[
        "url({urltext})",
    ]),
    ("semver", &[
        "semver({vtext})", "semver({vtext}, {bool})",
    ]),
];

/// What each type may be without anything in it.
#[rustfmt::skip]
const LEAVES: &[(&str, &[&str])] = &[
    ("bool", &[
        "true", "false", "parent.yes",
    ]),
    ("int", &[
        "0", "1", "-1", "2", "3", "7", "42", "-5", "9223372036854775807", "-9223372036854775808", "9007199254740993",
        "0x1F", "parent.i", "parent.m.a", "parent.gone", "parent.list[0]", "-62135596800", "253402300799",
        "100000000000",
    ]),
    ("small", &[
        "0", "1", "2", "3", "5", "-1", "10", "64", "4",
    ]),
    ("uint", &[
        "0u", "1u", "3u", "18446744073709551615u", "0x10u", "parent.u", "9223372036854775808u",
    ]),
    ("double", &[
        "0.0", "-0.0", "1.0", "1.5", "-2.5", "0.1", "1e21", "1e20", "123456.789", "1e-5", "0.0001", "1e308", "-1e308",
        "9007199254740993.0", "9223372036854775807.0", "-9223372036854775808.0", "18446744073709551615.0", "2.5e-7",
        "double('NaN')", "double('Infinity')", "parent.d", ".5", "0.5", "3.0",
    ]),
    ("string", &[
        "''", "'a'", "'b'", "'ab'", "'ÿ'", "'äöü b'", "'a,b,c'", "'it\\'s'", "\"q\\\"\"", "' \\t x '", "'𝒳y'",
        "r'\\n'", "'''a\n'b'''", "'\\u00e9\\x41\\101'", "'%s'", "'%d-%s'", "'1'", "'aXbXc'", "'Hello World'",
        "parent.s", "parent.t", "'\\\\'", "'x-1'", "parent.words[0]", "'a\\u0301'", "'ß'", "'%'", "'%%'", "'%q'",
        "'abcabc'",
    ]),
    ("bytes", &[
        "b''", "b'a'", "b'\\xff\\x00'", "b'ÿ'", "b'abc'", "b'\\377'", "br'\\x'",
    ]),
    ("booltext", &[
        "'true'", "'false'", "'1'", "'T'", "'TRUE'", "'yes'", "''", "'False'", "'tRue'",
    ]),
    ("numtext", &[
        "'1'", "'-7'", "'+3'", "'1.5'", "'1e3'", "' 1'", "''", "'0x10'", "'9223372036854775808'",
        "'-9223372036854775808'", "'18446744073709551615'", "'NaN'", "'-Infinity'", "'inf'", "'1e400'", "'.5'",
        "'1.'", "'007'", "'1_0'", "'e3'", "'-0'",
    ]),
    ("durtext", &[
        "'1h'", "'1h30m'", "'-1.5s'", "'10ms'", "'1us'", "'3ns'", "'0'", "'1'", "''", "'1d'", "'2540400h'",
        "'-2562047h47m'", "'.5s'", "'1.s'", "'+1m'", "'0.000000001s'", "'100000h0.1s'", "'9999999999h'", "'1h-1m'",
        "'.s'",
    ]),
    ("duration", &[
        "duration('1h')", "duration('-90m')", "duration('1.5s')", "duration('0s')", "duration('2540000h')",
    ]),
    ("timetext", &[
        "'2024-02-29T12:34:56Z'", "'1970-01-01T00:00:00Z'", "'2023-12-31T23:30:00-05:30'",
        "'2024-07-01T01:02:03.123456789+02:00'", "'0001-01-01T00:00:00Z'", "'9999-12-31T23:59:59.999999999Z'",
        "'10000-01-01T00:00:00Z'", "'2023-02-29T00:00:00Z'", "'2024-01-01'", "'2024-01-01T24:00:00Z'",
        "'2024-01-01T00:00:60Z'", "'2024-01-01T00:00:00'", "'2024-01-01 00:00:00Z'", "'2024-01-01T00:00:00.5Z'",
        "'2024-1-1T00:00:00Z'", "'2024-01-01T00:00:00z'", "'0001-01-01T00:00:00+01:00'", "'2024-01-01T00:00:00.Z'",
        "'2024-01-01T00:00:00+0100'", "'2024-01-01T5:00:00Z'", "'2024-01-01T05:00:00,25Z'", "'0000-01-01T00:00:00Z'",
    ]),
    ("time", &[
        "timestamp('2024-02-29T12:34:56.789Z')", "timestamp('2023-12-31T23:30:00-05:00')",
        "timestamp('1969-12-31T23:59:59.5Z')", "timestamp(0)", "timestamp('2024-03-31T01:30:00Z')",
        "timestamp('9999-12-31T23:59:59Z')",
    ]),
    ("tz", &[
        "'UTC'", "''", "'Europe/Berlin'", "'America/New_York'", "'Asia/Kolkata'", "'+02:00'", "'-03:30'", "'02:00'",
        "'-00:30'", "'Nowhere/Land'", "'utc'", "'+2:5'", "'1:60'", "'14:00'", "'Australia/Sydney'",
    ]),
    ("re", &[
        "'a'", "'^a.*c$'", "'[a-z]+'", "'\\\\d+'", "'\\\\w'", "'(a|b)+'", "'('", "'X?'", "''", "'\\\\s'", "'[^a]'",
        "'(?i)HELLO'", "'a{2}'", "'a**'", "'\\\\bW'", "'[[:alpha:]]'", "'\\\\pL'", "'ü'", "'.'", "'[a&&b]'",
        "'(?P<n>a)'", "'x*'", "'a{1001}'", "'\\\\x{e4}'", "'[]a]'", "'\\\\D+'", "'(?x)a b'", "'\\\\1'", "'b|'",
        "'[-a]'", "'a{,2}'",
    ]),
    ("b64", &[
        "'aGVsbG8='", "'aGVsbG8'", "'YQ=='", "'YQ'", "''", "'!'", "'YR=='", "'YQ='", "'Y'", "'_-8='", "'/w=='",
    ]),
    ("li", &[
        "[]", "[1]", "[3, 1, 2]", "[1, 1, 2]", "parent.list", "[0, -1]",
    ]),
    ("ls", &[
        "[]", "['a']", "['b', 'a', 'ab']", "parent.words", "['ÿ', 'z', '']",
    ]),
    ("ld", &[
        "[]", "[1, 'a', null]", "[1, 1.0, 1u]", "[[1], [1.0], {'a': 1}]", "parent.mixed", "[double('NaN')]",
        "[true, b'a']",
    ]),
    ("ms", &[
        "{}", "{'a': 1}", "{'a': 2, 'b': 3, 'ab': 1}", "parent.m",
    ]),
    ("mi", &[
        "{}", "{1: 2}", "{1: 5, 2: 6}",
    ]),
    ("md", &[
        "{}", "{'a': 1}", "{'a': {'b': 2}}", "{'a': [1, 'x']}", "parent", "parent.deep[0]",
    ]),
    ("oi", &[
        "optional.none()", "optional.of(3)", "parent.?i",
    ]),
    ("os", &[
        "optional.none()", "optional.of('x')", "parent.?gone",
    ]),
    ("od", &[
        "optional.none()", "optional.of([1])", "parent.?mixed",
    ]),
    ("dyn", &[
        "null", "1", "1.0", "'a'", "true", "parent.i", "parent.mixed[1]", "parent.nothing", "parent.gone.x", "b'a'",
        "1u",
    ]),
    ("type", &[
        "int", "uint", "double", "string", "bool", "bytes", "list", "map", "null_type", "type",
        "google.protobuf.Timestamp", "google.protobuf.Duration",
    ]),
    ("qtext", &[
        "'1'", "'1Ki'", "'1.5Gi'", "'100m'", "'0'", "'-3'", "'1e3'", "'1E'", "'5Ei'", "'1.'", "'.5'", "''", "'abc'",
        "'1KiB'", "'12345678901234567890'", "'0.1n'", "'1u'", "'1000m'", "'9223372036854775807'",
        "'9223372036854775807k'", "'1e30'", "'1k'", "'+1M'", "'-0.5'", "'10Ei'", "'1e-3'", "'0.0000000001'",
        "'00012'", "'1.25Ki'", "'m'", "'1 '", "'0Ki'", "'0.5m'",
    ]),
    ("quantity", &[
        "quantity('1')", "quantity('1Gi')", "quantity('1.5')", "quantity('0')",
    ]),
    ("iptext", &[
        "'127.0.0.1'", "'::1'", "'10.1.2.3'", "'2001:DB8::1'", "'2001:db8::1'", "'::ffff:1.2.3.4'", "'1.2.3'",
        "'01.2.3.4'", "'fe80::1'", "'fe80::1%eth0'", "'224.0.0.5'", "'ff02::1'", "'0.0.0.0'", "'::'",
        "'255.255.255.255'", "'169.254.1.1'", "'2001:db8:0:0:1:0:0:1'", "'a'", "''", "'::1.2.3.4'", "'fd00::1'",
        "'ff05::2'", "'1:2:3:4:5:6:7::'",
    ]),
    ("ip", &[
        "ip('10.1.2.3')", "ip('::1')", "ip('fe80::1')",
    ]),
    ("cidrtext", &[
        "'10.0.0.0/8'", "'10.1.0.0/16'", "'10.1.2.3/24'", "'::/0'", "'2001:db8::/32'", "'10.0.0.0/33'", "'10.0.0.0'",
        "'0.0.0.0/0'", "'10.0.0.0/08'", "'::1/128'", "'::ffff:1.2.3.0/120'", "'1.2.3.4/32'", "'10.0.0.0/+8'",
        "'10.0.0.0/0'",
    ]),
    ("cidr", &[
        "cidr('10.0.0.0/8')", "cidr('10.1.2.3/24')", "cidr('2001:db8::/32')",
    ]),
    ("urltext", &[
        "'https://example.com/a?b=c&b=d#e'", "'http://u:p@h:80/x%2Fy'", "'/path'", "'relative'",
        "'http://[::1]:8080/'", "'http:'", "'mailto:a@b.c'", "'http://h:x/'", "'HTTP://H/'", "'http://a b/'",
        "'//h/p'", "'http://h?'", "''", "'*'", "'http://h/%zz'", "'http://h/a b'", "'a:b:c/d'", "'http://[::1'",
        "'http://ü/'", "'http://h/ü'", "'ftp://a:1,b:2/'", "'http://h:/'", "'///x'",
    ]),
    ("url", &[
        "url('https://example.com:443/a/b?c=d')", "url('/x')",
    ]),
    ("vtext", &[
        "'1.2.3'", "'v1.2.3'", "'1.2'", "'1.2.3-alpha.1'", "'1.2.3-alpha.beta+b.1'", "'01.2.3'", "'1.2.3-01'",
        "'1.2.3-'", "''", "'1.2.3.4'", "'18446744073709551615.0.0'", "'1'", "'v01.02'", "'1.2.3+'", "'1.2-a'",
        "'1.2.x'", "'1.10.0'", "'1.2.3-rc.2'",
    ]),
    ("semver", &[
        "semver('1.2.3')", "semver('1.2.3-rc.1')", "semver('2.0.0')",
    ]),
];

fn of(table: &[(&str, &'static [&'static str])], kind: &str) -> &'static [&'static str] {
    table.iter().find(|(name, _)| *name == kind).map_or(&[], |(_, rules)| rules)
}

/// An expression: the pieces of its text, with an expression between each two.
#[derive(Clone, Debug)]
struct Tree {
    kind: &'static str,
    pieces: Vec<String>,
    parts: Vec<Self>,
}

impl Tree {
    fn text(&self) -> String {
        let mut text = self.pieces[0].clone();
        for (part, piece) in self.parts.iter().zip(&self.pieces[1..]) {
            // What an operator makes stands in brackets, so that the tree is what is read.
            let inside = part.text();
            let is_bare = part.parts.is_empty() || inside.ends_with(')') && !inside.contains(' ');
            if is_bare && !inside.starts_with('-') {
                text.push_str(&inside)
            } else {
                _ = write!(text, "({inside})")
            }
            text.push_str(piece);
        }
        text
    }

    /// Smaller ones of the same type: any part of it, and it with a smaller part.
    fn smaller(&self) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        self.collect(self.kind, &mut all);
        all.extend(of(LEAVES, self.kind).iter().take(3).map(|leaf| Self::leaf(self.kind, leaf)));
        all.retain(|other| other.text().len() < self.text().len());
        for (number, part) in self.parts.iter().enumerate() {
            for smaller in part.smaller() {
                let mut with = self.clone();
                with.parts[number] = smaller;
                all.push(with);
            }
        }
        all
    }

    fn collect(&self, kind: &str, all: &mut Vec<Self>) {
        for part in &self.parts {
            if part.kind == kind || kind == "dyn" {
                all.push(part.clone());
            }
            part.collect(kind, all);
        }
    }

    fn leaf(kind: &'static str, text: &str) -> Self {
        Self { kind, pieces: vec![text.to_owned()], parts: Vec::new() }
    }
}

struct Maker {
    rng: Rng,
    variables: Vec<(String, &'static str)>,
    fresh: usize,
}

impl Maker {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())]
    }

    fn tree(&mut self, kind: &str, depth: usize) -> Tree {
        let table = LEAVES.iter().chain(RULES);
        let kind = table.map(|(name, _)| *name).find(|name| *name == kind).unwrap_or_else(|| panic!("no type {kind}"));
        // Now and then something else, for what is refused.
        let other = ["int", "string", "double", "ld", "dyn", "bool", "ms", "uint", "oi"];
        let asked = if depth > 0 && self.rng.usize(..40) == 0 { self.one(&other) } else { kind };
        let rules = of(RULES, asked);
        if depth == 0 || rules.is_empty() || self.rng.usize(..6) == 0 {
            let known: Vec<String> = self
                .variables
                .iter()
                .filter(|(_, is)| *is == asked || *is == "dyn")
                .map(|(name, _)| name.clone())
                .collect();
            if !known.is_empty() && self.rng.bool() {
                return Tree::leaf(kind, &known[self.rng.usize(..known.len())]);
            }
            let leaf = self.one(of(LEAVES, asked));
            return Tree::leaf(kind, leaf);
        }
        let rule = self.one(rules);
        self.grown(kind, rule, depth - 1)
    }

    fn grown(&mut self, kind: &'static str, rule: &str, depth: usize) -> Tree {
        let names = [self.fresh, self.fresh + 1].map(|number| format!("v{number}"));
        self.fresh += 2;
        let named = |text: &str| text.replace("$a", &names[0]).replace("$b", &names[1]);
        let (mut pieces, mut parts) = (vec![String::new()], Vec::new());
        let mut rest = rule;
        while let Some(at) = rest.find(['{', '}']) {
            let last = pieces.len() - 1;
            pieces[last].push_str(&named(&rest[..at]));
            if rest[at..].starts_with("{{") || rest[at..].starts_with("}}") {
                pieces[last].push_str(&rest[at..=at]);
                rest = &rest[at + 2..];
                continue;
            }
            let end = at + rest[at..].find('}').expect("a rule with its brackets");
            let mut asked = rest[at + 1..end].splitn(2, '|');
            let (asked, seen) = (asked.next().expect("a type"), asked.next().unwrap_or_default());
            let before = self.variables.len();
            for variable in seen.split(',').filter(|variable| !variable.is_empty()) {
                let (name, of) = variable.split_once(':').expect("a variable and its type");
                let of = LEAVES.iter().map(|(name, _)| *name).find(|name| *name == of).expect("a type");
                self.variables.push((named(name), of));
            }
            // `{=type}` is one of that type indeed, and nothing else.
            let (asked, depth) = asked.strip_prefix('=').map_or((asked, depth), |asked| (asked, 0));
            parts.push(self.tree(asked, depth));
            self.variables.truncate(before);
            pieces.push(String::new());
            rest = &rest[end + 1..];
        }
        let last = pieces.len() - 1;
        pieces[last].push_str(&named(rest));
        Tree { kind, pieces, parts }
    }

    fn object(&mut self) -> Json {
        let texts = ["a", "b", "ab", "", "ÿ", "x,y", "äöü", "A b", "1", "𝒳"];
        let whole = [0, 1, -1, 2, 3, 17, i64::MAX, i64::MIN, 1 << 53];
        let list = |maker: &mut Self, most: usize| -> Vec<i64> {
            (0..maker.rng.usize(..=most)).map(|_| maker.one(&whole)).collect()
        };
        let words: Vec<&str> = (0..self.rng.usize(..4)).map(|_| self.one(&texts)).collect();
        json!({
            "i": self.one(&whole),
            "u": 18_446_744_073_709_551_615_u64 - self.rng.u64(..3),
            "d": self.one(&[0.5, -1.5, 1e21, 3.25, 1e-7, 100.125]),
            "s": self.one(&texts),
            "t": self.one(&texts),
            "yes": self.rng.bool(),
            "nothing": null,
            "list": list(self, 4),
            "words": words,
            "mixed": [self.one(&whole), self.one(&texts), null, {"a": self.one(&whole)}, list(self, 2)],
            "m": {"a": self.one(&whole), "b": 2},
            "deep": [{"a": {"b": self.one(&whole)}}, [list(self, 2)], self.one(&texts)],
        })
    }
}

/// The case of a number: an expression and what it sees.
fn case(seed: u64) -> (Tree, Json) {
    let mut maker = Maker { rng: Rng::with_seed(seed), variables: Vec::new(), fresh: 0 };
    let object = maker.object();
    let kinds = [
        "bool", "int", "uint", "double", "string", "bytes", "duration", "time", "li", "ls", "ld", "ms", "mi", "md",
        "oi", "os", "od", "dyn", "type", "quantity", "ip", "cidr", "url", "semver", "bool", "int", "string", "dyn",
    ];
    let (kind, depth) = (maker.one(&kinds), 1 + maker.rng.usize(..4));
    let rule = maker.one(of(RULES, kind));
    let kind = RULES.iter().map(|(name, _)| *name).find(|name| *name == kind).expect("a type");
    (maker.grown(kind, rule, depth - 1), object)
}

/// A value with its type, as the program writes it.
pub(super) fn typed(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Int(number) => json!({"int": number.to_string()}),
        Value::Uint(number) => json!({"uint": number.to_string()}),
        Value::Double(number) if number.is_nan() => json!({"double": "nan"}),
        Value::Double(number) => json!({"double": format!("{:x}", number.to_bits())}),
        Value::String(text) => json!(text.as_ref()),
        Value::Bytes(bytes) => json!({"bytes": write_base64(bytes)}),
        Value::List(list) => json!({"list": list.items.iter().map(typed).collect::<Vec<_>>()}),
        Value::Map(map) => {
            let entry = |(key, value): (&Key, &Value)| (typed(&key.value()), typed(value));
            let mut entries: Vec<(Json, Json)> = map.fields.iter().map(entry).collect();
            entries.sort_by_key(|(key, _)| key.to_string());
            json!({"map": entries})
        }
        Value::Duration(nanos) => json!({"duration": nanos.to_string()}),
        Value::Timestamp(time) => json!({"timestamp": format!("{}.{:09}", time.seconds(), time.nanos())}),
        Value::Type(name) => json!({"type": name}),
        Value::Optional(value) => json!({"optional": value.iter().map(|value| typed(value)).collect::<Vec<_>>()}),
        Value::Quantity(quantity) => json!({"quantity": quantity.amount()}),
        Value::Ip(address) => json!({"ip": address.to_string()}),
        Value::Cidr(address, length) => json!({"cidr": format!("{address}/{length}")}),
        Value::Url(url) => json!({"url": url.text()}),
        Value::Semver(version) => json!({"semver": version.text()}),
        Value::Format(name) => json!({"other": name}),
    }
}

/// What an expression is for us.
enum Ours {
    Value(Json),
    Error(String),
    Refused(String),
}

impl Ours {
    fn told(&self) -> String {
        match self {
            Self::Value(value) => format!("{{\"value\":{value}}}"),
            Self::Error(why) => format!("no value: {why}"),
            Self::Refused(why) => format!("refused: {why}"),
        }
    }
}

fn ours(text: &str, object: &Json) -> Ours {
    let expression = match Expression::compile(text) {
        Ok(expression) => expression,
        Err(why) => return Ours::Refused(why),
    };
    let mut evaluation = Evaluation::new(false);
    evaluation.show(Name::Parent, object);
    match evaluation.evaluate(&expression) {
        Ok(value) => Ours::Value(typed(&value)),
        Err(Halt::Missing { what, .. } | Halt::Failed(what)) => Ours::Error(what),
        Err(Halt::Spent(_)) => Ours::Error("the budget is spent".to_owned()),
    }
}

fn ask(cel_go: &mut CelGo, text: &str, object: &Json) {
    cel_go.ask(text, &json!({"parent": object})).expect("cel-go reads");
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    BothFail,
    /// cel-go has a value, and it is refused before it is evaluated.
    Unsupported(String),
    /// cel-go itself breaks down.
    Panic,
    Different,
}

fn verdict(ours: &Ours, theirs: &Json) -> Verdict {
    match (ours, theirs.get("value")) {
        _ if theirs.get("panic").is_some() => Verdict::Panic,
        // It makes texts of bytes that are none, which the specification does not allow.
        (Ours::Error(_), Some(value)) if value.to_string().contains('\u{fffd}') => Verdict::BothFail,
        // A type that is bound to a variable has it look for a type of the variable's name.
        _ if theirs["error"].as_str().is_some_and(|why| why.contains("undefined type: v")) => Verdict::Panic,
        (Ours::Value(value), Some(expected)) if value == expected => Verdict::Same,
        (Ours::Refused(why), Some(_)) => Verdict::Unsupported(why.clone()),
        (Ours::Error(_) | Ours::Refused(_), None) => Verdict::BothFail,
        _ => Verdict::Different,
    }
}

/// Compares the cases of these numbers, and says what became of them.
fn compare(seeds: std::ops::Range<u64>) -> String {
    let mut cel_go = CelGo::start().expect("cel-go starts");
    let (mut same, mut fail, mut panics, mut unsupported) = (0, 0, 0, Vec::new());
    let mut different = Vec::new();
    let all: Vec<u64> = seeds.clone().collect();
    for some in all.chunks(100) {
        let cases: Vec<_> = some.iter().map(|seed| (*seed, case(*seed))).collect();
        for (_, (tree, object)) in &cases {
            ask(&mut cel_go, &tree.text(), object);
        }
        for (seed, (tree, object)) in cases {
            let theirs = cel_go.answer().expect("cel-go answers");
            match verdict(&ours(&tree.text(), &object), &theirs) {
                Verdict::Same => same += 1,
                Verdict::BothFail => fail += 1,
                Verdict::Panic => panics += 1,
                Verdict::Unsupported(why) => unsupported.push(format!("  {seed}: {}\n    {why}", tree.text())),
                Verdict::Different => different.push((seed, tree, object)),
            }
        }
    }
    let mut report = String::new();
    for (seed, tree, object) in different.iter().take(40) {
        let (small, theirs) = smallest(&mut cel_go, tree.clone(), object);
        let mine = ours(&small.text(), object).told();
        _ = writeln!(report, "seed {seed}: {}\n  cel-go {theirs}\n  ours   {mine}\n  parent {object}", small.text());
    }
    let count = seeds.end - seeds.start;
    let failed = different.len();
    _ = writeln!(
        report,
        "{count} expressions: {same} of the same value, {fail} without a value in both, {failed} different, \
         {} not supported, {panics} that cel-go breaks down on",
        unsupported.len()
    );
    for one in unsupported.iter().take(20) {
        _ = writeln!(report, "{one}");
    }
    assert!(different.is_empty(), "{report}");
    report
}

fn smallest(cel_go: &mut CelGo, mut tree: Tree, object: &Json) -> (Tree, Json) {
    let asked = |cel_go: &mut CelGo, tree: &Tree| {
        ask(cel_go, &tree.text(), object);
        cel_go.answer().expect("cel-go answers")
    };
    loop {
        let smaller = tree.smaller().into_iter().find(|smaller| {
            let theirs = asked(cel_go, smaller);
            verdict(&ours(&smaller.text(), object), &theirs) == Verdict::Different
        });
        match smaller {
            Some(smaller) => tree = smaller,
            None => {
                let theirs = asked(cel_go, &tree);
                return (tree, theirs);
            }
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// `CEL_COMPARE` says how many, `CEL_SEED` from which on.
#[test]
fn generated_expressions_mean_what_they_mean_to_cel_go() {
    let from = number("CEL_SEED", 0);
    println!("{}", compare(from..from + number("CEL_COMPARE", 4000)));
}
