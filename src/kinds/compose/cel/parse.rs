//! Reads the text of an expression, by the grammar of the CEL specification. Pure.

use super::value::Value;

/// What an expression is made of, as it stands in the text; names and macros are not looked into.
#[derive(Debug)]
pub(super) enum Ast {
    Literal(Value),
    Ident(String),
    Select {
        of: Box<Self>,
        field: String,
        is_optional: bool,
    },
    Index {
        of: Box<Self>,
        key: Box<Self>,
        is_optional: bool,
    },
    Call {
        target: Option<Box<Self>>,
        name: String,
        arguments: Vec<Self>,
    },
    /// Items, and whether an item is left out if its value is not there.
    List(Vec<(bool, Self)>),
    Map(Vec<(bool, Self, Self)>),
    Conditional(Box<[Self; 3]>),
    And(Vec<Self>),
    Or(Vec<Self>),
    Not(Box<Self>),
    Negate(Box<Self>),
    Binary(Operator, Box<[Self; 2]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Int(String),
    Uint(String),
    Double(String),
    String(String),
    Bytes(Vec<u8>),
    Word(String),
    Sign(&'static str),
    End,
}

/// Longer ones first.
const SIGNS: [&str; 26] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}", "=", "`",
];

/// Words that are kept for languages around CEL: no variable has such a name.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Reads a text. The deepest nesting of brackets and choices is bounded: it is read by recursion.
pub(super) fn parse(text: &str, deepest: usize) -> Result<Ast, String> {
    let tokens = Lexer { text, at: 0 }.tokens()?;
    let mut parser = Parser { text, tokens, next: 0, depth: 0, deepest };
    let ast = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(ast),
        _ => Err(parser.unexpected("the end, or an operator")),
    }
}

/// Where a `}` or another end stands that is no part of a text or a comment within an expression.
pub(in crate::kinds::compose) fn end_of(text: &str) -> Option<usize> {
    let mut lexer = Lexer { text, at: 0 };
    let mut open = 0_usize;
    loop {
        match lexer.token() {
            Ok(Token::Sign("{")) => open += 1,
            Ok(Token::Sign("}")) if open == 0 => return Some(lexer.at - 1),
            Ok(Token::Sign("}")) => open -= 1,
            Ok(Token::End) => return None,
            Ok(_) => {}
            // What is wrong with it is said when it is compiled; here it is a character like others.
            Err(_) => lexer.at += lexer.rest().chars().next()?.len_utf8(),
        }
    }
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn tokens(mut self) -> Result<Vec<(usize, Token)>, String> {
        let mut tokens = Vec::new();
        loop {
            self.skip();
            let at = self.at;
            let token = self.token().map_err(|wrong| format!("column {}: {wrong}", column(self.text, at)))?;
            let is_end = token == Token::End;
            tokens.push((at, token));
            if is_end {
                return Ok(tokens);
            }
        }
    }

    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']);
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn token(&mut self) -> Result<Token, String> {
        self.skip();
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if let Some(token) = self.quoted()? {
            return Ok(token);
        }
        if first.is_ascii_digit() || first == '.' && rest[1..].starts_with(|next: char| next.is_ascii_digit()) {
            return self.number();
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let length = rest.find(|part: char| !part.is_ascii_alphanumeric() && part != '_').unwrap_or(rest.len());
            self.at += length;
            return Ok(Token::Word(rest[..length].to_owned()));
        }
        for sign in SIGNS {
            if rest.starts_with(sign) {
                self.at += sign.len();
                return Ok(Token::Sign(sign));
            }
        }
        Err("a character that no expression has outside of a text".to_owned())
    }

    fn number(&mut self) -> Result<Token, String> {
        let rest = self.rest();
        let digits = |text: &str| text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
        if let Some(hex) = rest.strip_prefix("0x") {
            let length = 2 + hex.find(|digit: char| !digit.is_ascii_hexdigit()).unwrap_or(hex.len());
            if length > 2 {
                return Ok(self.whole(length));
            }
        }
        let mut length = digits(rest);
        let mut is_double = false;
        if rest[length..].starts_with('.') && digits(&rest[length + 1..]) > 0 {
            length += 1 + digits(&rest[length + 1..]);
            is_double = true;
        }
        if rest[length..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[length + 1..].starts_with(['+', '-']));
            let exponent = digits(&rest[length + 1 + sign..]);
            if exponent > 0 {
                length += 1 + sign + exponent;
                is_double = true;
            }
        }
        if is_double {
            self.at += length;
            return Ok(Token::Double(rest[..length].to_owned()));
        }
        Ok(self.whole(length))
    }

    fn whole(&mut self, length: usize) -> Token {
        let rest = self.rest();
        let number = rest[..length].to_owned();
        self.at += length;
        if rest[length..].starts_with(['u', 'U']) {
            self.at += 1;
            return Token::Uint(number);
        }
        Token::Int(number)
    }

    /// A text or bytes, with what stands before the quotation mark.
    fn quoted(&mut self) -> Result<Option<Token>, String> {
        let rest = self.rest();
        let mut before = 0;
        let is_bytes = rest.starts_with(['b', 'B']);
        before += usize::from(is_bytes);
        let is_raw = rest[before..].starts_with(['r', 'R']);
        before += usize::from(is_raw);
        let quotes = &rest[before..];
        let Some(mark) = ["'''", "\"\"\"", "'", "\""].into_iter().find(|mark| quotes.starts_with(mark)) else {
            return Ok(None);
        };
        let inside = &quotes[mark.len()..];
        let mut characters = inside.char_indices();
        let end = loop {
            let Some((at, character)) = characters.next() else { return Err("a text without its end".to_owned()) };
            match character {
                '\\' if !is_raw => _ = characters.next(),
                '\n' | '\r' if mark.len() == 1 => return Err("a text without its end in that line".to_owned()),
                _ if inside[at..].starts_with(mark) => break at,
                _ => {}
            }
        };
        self.at += before + mark.len() + end + mark.len();
        let inside = inside[..end].replace("\r\n", "\n").replace('\r', "\n");
        let bytes = if is_raw { inside.into_bytes() } else { unescape(&inside, is_bytes)? };
        if is_bytes {
            return Ok(Some(Token::Bytes(bytes)));
        }
        String::from_utf8(bytes).map(Token::String).map(Some).map_err(|_| "an escape that is no character".to_owned())
    }
}

fn unescape(text: &str, is_bytes: bool) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let Some(kind) = rest.chars().next() else { return Err("a text that ends in `\\`".to_owned()) };
        let wrong = || format!("`\\{kind}` is no escape here; write `\\\\` for one `\\`");
        rest = &rest[kind.len_utf8()..];
        let simple = match kind {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(10),
            'r' => Some(13),
            't' => Some(9),
            'v' => Some(11),
            '\\' | '\'' | '"' | '`' | '?' => u8::try_from(kind).ok(),
            _ => None,
        };
        if let Some(byte) = simple {
            bytes.push(byte);
            continue;
        }
        let (digits, radix) = match kind {
            'x' | 'X' => (2, 16),
            'u' if !is_bytes => (4, 16),
            'U' if !is_bytes => (8, 16),
            // The first of three digits is the kind itself.
            '0'..='3' => (2, 8),
            _ => return Err(wrong()),
        };
        let number = rest.get(..digits).filter(|part| part.bytes().all(|digit| char::from(digit).is_digit(radix)));
        let mut code = number.and_then(|number| u32::from_str_radix(number, radix).ok()).ok_or_else(wrong)?;
        rest = &rest[digits..];
        if radix == 8 {
            code += 64 * kind.to_digit(8).unwrap_or(0);
        }
        match (is_bytes, u8::try_from(code)) {
            (true, Ok(byte)) => bytes.push(byte),
            (true, Err(_)) => return Err(wrong()),
            (false, _) => {
                let character = char::from_u32(code).ok_or_else(|| "an escape that is no character".to_owned())?;
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

fn column(text: &str, at: usize) -> usize {
    text[..at].chars().count() + 1
}

struct Parser<'t> {
    text: &'t str,
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
    deepest: usize,
}

/// How much of left and right an operator binds, from the loosest.
fn binary(sign: &str) -> Option<(u8, Operator)> {
    Some(match sign {
        "<" => (1, Operator::Less),
        "<=" => (1, Operator::LessOrEqual),
        ">" => (1, Operator::Greater),
        ">=" => (1, Operator::GreaterOrEqual),
        "==" => (1, Operator::Equal),
        "!=" => (1, Operator::NotEqual),
        "+" => (2, Operator::Add),
        "-" => (2, Operator::Subtract),
        "*" => (3, Operator::Multiply),
        "/" => (3, Operator::Divide),
        "%" => (3, Operator::Remainder),
        _ => return None,
    })
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(_, token)| token)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        token
    }

    fn is(&mut self, sign: &str) -> bool {
        let is = matches!(self.peek(), Token::Sign(found) if *found == sign);
        if is {
            self.take();
        }
        is
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.is(sign) { Ok(()) } else { Err(self.unexpected(&format!("`{sign}`"))) }
    }

    fn unexpected(&self, expected: &str) -> String {
        let at = self.tokens.get(self.next).map_or(self.text.len(), |(at, _)| *at);
        let found = match self.peek() {
            Token::End => "the end".to_owned(),
            Token::Sign(sign) => format!("`{sign}`"),
            Token::Word(word) => format!("`{word}`"),
            Token::Int(_) | Token::Uint(_) | Token::Double(_) => "a number".to_owned(),
            Token::String(_) | Token::Bytes(_) => "a text".to_owned(),
        };
        format!("column {}: expected {expected}, found {found}", column(self.text, at))
    }

    fn expression(&mut self) -> Result<Ast, String> {
        self.depth += 1;
        if self.depth > self.deepest {
            return Err(format!("an expression of brackets and choices more than {} deep", self.deepest));
        }
        let condition = self.logical()?;
        let ast = if self.is("?") {
            let yes = self.logical()?;
            self.expect(":")?;
            let no = self.expression()?;
            Ast::Conditional(Box::new([condition, yes, no]))
        } else {
            condition
        };
        self.depth -= 1;
        Ok(ast)
    }

    fn logical(&mut self) -> Result<Ast, String> {
        let mut any = Vec::new();
        loop {
            let mut all = vec![self.relation(1)?];
            while self.is("&&") {
                all.push(self.relation(1)?);
            }
            any.push(only(all).unwrap_or_else(Ast::And));
            if !self.is("||") {
                return Ok(only(any).unwrap_or_else(Ast::Or));
            }
        }
    }

    fn relation(&mut self, least: u8) -> Result<Ast, String> {
        let mut left = self.unary()?;
        loop {
            let (binds, operator) = match self.peek() {
                Token::Sign(sign) => match binary(sign) {
                    Some(found) => found,
                    None => return Ok(left),
                },
                Token::Word(word) if word == "in" => (1, Operator::In),
                _ => return Ok(left),
            };
            if binds < least {
                return Ok(left);
            }
            self.take();
            let right = self.relation(binds + 1)?;
            left = Ast::Binary(operator, Box::new([left, right]));
        }
    }

    /// Several `!`, or several `-`, of which two are none.
    fn unary(&mut self) -> Result<Ast, String> {
        let mut count = 0;
        while self.is("!") {
            count += 1;
        }
        if count > 0 {
            let of = self.member()?;
            return Ok(if count % 2 == 1 { Ast::Not(Box::new(of)) } else { of });
        }
        while matches!(self.peek(), Token::Sign("-")) {
            let is_number = matches!(self.tokens.get(self.next + 1), Some((_, Token::Int(_) | Token::Double(_))));
            if count == 0 && is_number {
                break;
            }
            self.take();
            count += 1;
        }
        let of = self.member()?;
        Ok(if count % 2 == 1 { Ast::Negate(Box::new(of)) } else { of })
    }

    fn member(&mut self) -> Result<Ast, String> {
        let mut of = self.primary()?;
        loop {
            if self.is(".") {
                let is_optional = self.is("?");
                let Token::Word(field) = self.peek().clone() else {
                    return Err(self.unexpected("the name of a field"));
                };
                if ["in", "true", "false", "null"].contains(&&*field) {
                    return Err(self.unexpected("the name of a field; write ['name'] for this one"));
                }
                self.take();
                if !is_optional && self.is("(") {
                    let arguments = self.arguments()?;
                    of = Ast::Call { target: Some(Box::new(of)), name: field, arguments };
                } else {
                    of = Ast::Select { of: Box::new(of), field, is_optional };
                }
            } else if self.is("[") {
                let is_optional = self.is("?");
                let key = Box::new(self.expression()?);
                self.expect("]")?;
                of = Ast::Index { of: Box::new(of), key, is_optional };
            } else if matches!(self.peek(), Token::Sign("{")) && matches!(of, Ast::Ident(_) | Ast::Select { .. }) {
                return Err(
                    "messages such as `Name{field: …}` are not supported; write a mapping: {'field': …}".to_owned()
                );
            } else {
                return Ok(of);
            }
        }
    }

    fn arguments(&mut self) -> Result<Vec<Ast>, String> {
        let mut arguments = Vec::new();
        if self.is(")") {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.expression()?);
            if !self.is(",") {
                self.expect(")")?;
                return Ok(arguments);
            }
        }
    }

    fn primary(&mut self) -> Result<Ast, String> {
        if self.is("(") {
            let inside = self.expression()?;
            self.expect(")")?;
            return Ok(inside);
        }
        if self.is("[") {
            let mut items = Vec::new();
            while !self.is("]") {
                let is_optional = self.is("?");
                items.push((is_optional, self.expression()?));
                if !self.is(",") {
                    self.expect("]")?;
                    break;
                }
            }
            return Ok(Ast::List(items));
        }
        if self.is("{") {
            let mut entries = Vec::new();
            while !self.is("}") {
                let is_optional = self.is("?");
                let key = self.expression()?;
                self.expect(":")?;
                entries.push((is_optional, key, self.expression()?));
                if !self.is(",") {
                    self.expect("}")?;
                    break;
                }
            }
            return Ok(Ast::Map(entries));
        }
        let sign = if self.is("-") { "-" } else { "" };
        let dot = sign.is_empty() && self.is(".");
        let expected = "a value";
        let ast = match self.peek().clone() {
            Token::Int(number) => Ast::Literal(Value::Int(int(sign, &number).ok_or("an int that is too large")?)),
            Token::Uint(number) if sign.is_empty() => {
                let parsed = match number.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    None => number.parse(),
                };
                Ast::Literal(Value::Uint(parsed.map_err(|_| "a uint that is too large")?))
            }
            Token::Double(number) => {
                let parsed = format!("{sign}{number}").parse::<f64>().ok().filter(|number| number.is_finite());
                Ast::Literal(Value::Double(parsed.ok_or("a double that is too large")?))
            }
            _ if !sign.is_empty() => return Err(self.unexpected("a number")),
            Token::Word(word) if !dot && word == "true" => Ast::Literal(Value::Bool(true)),
            Token::Word(word) if !dot && word == "false" => Ast::Literal(Value::Bool(false)),
            Token::Word(word) if !dot && word == "null" => Ast::Literal(Value::Null),
            Token::Word(word) if word != "in" => {
                self.take();
                if RESERVED.contains(&&*word) {
                    return Err(format!("`{word}` is reserved: no variable and no function has that name"));
                }
                if self.is("(") {
                    let arguments = self.arguments()?;
                    return Ok(Ast::Call { target: None, name: word, arguments });
                }
                return Ok(Ast::Ident(word));
            }
            Token::String(text) if !dot => Ast::Literal(Value::text(text)),
            Token::Bytes(bytes) if !dot => Ast::Literal(Value::Bytes(bytes.into())),
            _ => return Err(self.unexpected(expected)),
        };
        if dot {
            return Err(self.unexpected("a name"));
        }
        self.take();
        Ok(ast)
    }
}

fn int(sign: &str, number: &str) -> Option<i64> {
    match number.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16).ok(),
        None => format!("{sign}{number}").parse().ok(),
    }
}

/// The one there is, or all of them.
fn only(mut all: Vec<Ast>) -> Result<Ast, Vec<Ast>> {
    match all.pop() {
        Some(one) if all.is_empty() => Ok(one),
        Some(last) => {
            all.push(last);
            Err(all)
        }
        None => Err(all),
    }
}
