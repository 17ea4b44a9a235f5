//! The parser of templates; the depth of the syntax tree is limited to [`DEPTH`](super::DEPTH).

use std::sync::Arc;

use super::lexer::{Token, tokens};
use super::{DEPTH, Fault, Res};

/// An expression.
#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Name(String),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// Left-associative operators of one precedence: the first operand, then operators with their operands.
    Chain(Box<Expr>, Vec<(Op, Expr)>),
    Compare(Box<Expr>, Vec<(Op, Expr)>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    /// Conditional expression: value and condition, then the value of `else`.
    If(Box<[Expr; 2]>, Option<Box<Expr>>),
    /// Postfix operators applied to a value.
    Postfix(Box<Expr>, Vec<Step>),
}

/// A postfix operator.
#[derive(Debug)]
pub(super) enum Step {
    Attr(String),
    Item(Expr),
    Slice([Option<Expr>; 3]),
    Call(Arguments),
    Filter(String, Arguments),
    /// A test, its arguments, and whether it is negated.
    Test(String, Arguments, bool),
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Argument>,
    pub(super) named: Vec<(String, Expr)>,
    /// `**options`
    pub(super) spread: Option<Box<Expr>>,
}

#[derive(Debug)]
pub(super) enum Argument {
    One(Expr),
    /// `*list`
    Spread(Expr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Add,
    Sub,
    Concat,
    Mul,
    Div,
    Floor,
    Mod,
    Pow,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// The target of an assignment.
#[derive(Debug)]
pub(super) enum Target {
    Name(String),
    /// An attribute of a namespace.
    Attr(String, String),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct ForLoop {
    pub(super) target: Target,
    pub(super) over: Expr,
    pub(super) filter: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

#[derive(Debug)]
pub(super) struct MacroBody {
    pub(super) name: String,
    pub(super) arguments: Vec<(String, Option<Expr>)>,
    pub(super) body: Vec<Node>,
}

/// A statement and its line.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Data(String),
    Output(Expr),
    /// Conditions with their bodies, then the body of `else`.
    If(Vec<(Expr, Vec<Node>)>, Vec<Node>),
    For(Arc<ForLoop>),
    Set(Target, Expr),
    /// Assigns the output of a body, through filters.
    SetBlock(Target, Vec<Step>, Vec<Node>),
    Macro(Arc<MacroBody>),
    /// A call whose `caller` is the body.
    Call(Expr, Arc<MacroBody>),
    Filter(Vec<Step>, Vec<Node>),
    With(Vec<(Target, Expr)>, Vec<Node>),
    /// A body with its own scope.
    Block(Vec<Node>),
    Break,
    Continue,
}

/// Parses a template into statements.
pub(super) fn parse(source: &str) -> Res<Vec<Node>> {
    let mut parser = Parser { tokens: tokens(source)?, at: 0, depth: 0, loops: 0 };
    let (nodes, _) = parser.nodes(&[])?;
    Ok(nodes)
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    loops: usize,
}

/// Binary operators by precedence, lowest first.
const LEVELS: [&[(&str, Op)]; 4] = [
    &[("+", Op::Add), ("-", Op::Sub)],
    &[("~", Op::Concat)],
    &[("*", Op::Mul), ("/", Op::Div), ("//", Op::Floor), ("%", Op::Mod)],
    &[("**", Op::Pow)],
];

impl Parser {
    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    fn fault<T>(&self, message: impl Into<String>) -> Res<T> {
        Err(Fault::failed(message).on(self.line()))
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn is_op(&self, operator: &str) -> bool {
        matches!(self.peek(), Some(Token::Op(op)) if *op == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(n)) if n == name)
    }

    fn take_op(&mut self, operator: &str) -> bool {
        let is = self.is_op(operator);
        self.at += usize::from(is);
        is
    }

    fn take_name(&mut self, name: &str) -> bool {
        let is = self.is_name(name);
        self.at += usize::from(is);
        is
    }

    fn expect_op(&mut self, operator: &str) -> Res<()> {
        match self.take_op(operator) {
            true => Ok(()),
            false => self.fault(format!("expected {operator:?}{}", self.found())),
        }
    }

    fn found(&self) -> String {
        match self.peek() {
            Some(Token::Name(name)) => format!(", found {name:?}"),
            Some(Token::Op(op)) => format!(", found {op:?}"),
            Some(Token::Str(_)) => ", found a string".into(),
            Some(Token::Int(_) | Token::Float(_)) => ", found a number".into(),
            Some(_) => ", found the end of a tag".into(),
            None => ", found the end of the template".into(),
        }
    }

    fn expect_token(&mut self, token: Token, what: &str) -> Res<()> {
        match self.peek() == Some(&token) {
            true => {
                self.at += 1;
                Ok(())
            }
            false => self.fault(format!("expected {what}{}", self.found())),
        }
    }

    fn end_of_tag(&mut self) -> Res<()> {
        self.expect_token(Token::TagEnd, "the end of a tag")
    }

    fn name(&mut self) -> Res<String> {
        match self.peek() {
            Some(Token::Name(name)) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => self.fault(format!("expected a name{}", self.found())),
        }
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        if self.depth == DEPTH {
            return self.fault(format!("nested more than {DEPTH} deep"));
        }
        self.depth += 1;
        let result = f(self);
        self.depth -= 1;
        result
    }

    /// Statements up to a tag named in `ends`; its name is consumed, its end is not.
    fn nodes(&mut self, ends: &[&str]) -> Res<(Vec<Node>, String)> {
        let mut nodes = Vec::new();
        loop {
            let line = self.line();
            let Some(token) = self.peek().cloned() else {
                return match ends.first() {
                    None => Ok((nodes, String::new())),
                    Some(end) => self.fault(format!("missing {end}")),
                };
            };
            self.at += 1;
            let kind = match token {
                Token::Data(text) => Kind::Data(text),
                Token::Output => {
                    let value = self.tuple()?;
                    self.expect_token(Token::OutputEnd, "the end of an output")?;
                    Kind::Output(value)
                }
                Token::Tag => {
                    let name = self.name()?;
                    if ends.contains(&name.as_str()) {
                        return Ok((nodes, name));
                    }
                    self.deeper(|parser| parser.statement(&name))?
                }
                _ => return self.fault("unexpected tag"),
            };
            nodes.push(Node { line, kind });
        }
    }

    /// A body up to and including the tag `end`.
    fn body(&mut self, end: &str) -> Res<Vec<Node>> {
        self.end_of_tag()?;
        let (nodes, _) = self.nodes(&[end])?;
        Ok(nodes)
    }

    fn statement(&mut self, name: &str) -> Res<Kind> {
        let kind = match name {
            "if" => {
                let (mut arms, mut otherwise) = (Vec::new(), Vec::new());
                loop {
                    let condition = self.expression()?;
                    self.end_of_tag()?;
                    let (body, end) = self.nodes(&["endif", "elif", "else"])?;
                    arms.push((condition, body));
                    match end.as_str() {
                        "elif" => continue,
                        "else" => otherwise = self.body("endif")?,
                        _ => {}
                    }
                    break;
                }
                Kind::If(arms, otherwise)
            }
            "for" => {
                let target = self.target(false)?;
                if !self.take_name("in") {
                    return self.fault(format!("expected \"in\"{}", self.found()));
                }
                let over = self.tuple_of(|parser| parser.or())?;
                let filter = if self.take_name("if") { Some(self.expression()?) } else { None };
                let recursive = self.take_name("recursive");
                self.end_of_tag()?;
                self.loops += 1;
                let (body, end) = self.nodes(&["endfor", "else"])?;
                self.loops -= 1;
                let otherwise = if end == "else" { self.body("endfor")? } else { Vec::new() };
                Kind::For(Arc::new(ForLoop { target, over, filter, recursive, body, otherwise }))
            }
            "set" => {
                let target = self.target(true)?;
                if self.take_op("=") {
                    Kind::Set(target, self.tuple()?)
                } else {
                    let filters = self.filters()?;
                    Kind::SetBlock(target, filters, self.body("endset")?)
                }
            }
            "macro" => {
                let name = self.name()?;
                let arguments = self.parameters()?;
                let body = self.outside_loops(|parser| parser.body("endmacro"))?;
                Kind::Macro(Arc::new(MacroBody { name, arguments, body }))
            }
            "call" => {
                let arguments = if self.is_op("(") { self.parameters()? } else { Vec::new() };
                let call = self.expression()?;
                if !matches!(&call, Expr::Postfix(_, steps) if matches!(steps.last(), Some(Step::Call(_)))) {
                    return self.fault("the call tag has no call");
                }
                let body = self.outside_loops(|parser| parser.body("endcall"))?;
                Kind::Call(call, Arc::new(MacroBody { name: "caller".into(), arguments, body }))
            }
            "filter" => {
                self.at -= 1;
                self.tokens[self.at].0 = Token::Op("|");
                let filters = self.filters()?;
                Kind::Filter(filters, self.body("endfilter")?)
            }
            "with" => {
                let mut values = Vec::new();
                while self.peek() != Some(&Token::TagEnd) {
                    if !values.is_empty() {
                        self.expect_op(",")?;
                    }
                    let target = Target::Name(self.name()?);
                    self.expect_op("=")?;
                    values.push((target, self.expression()?));
                }
                Kind::With(values, self.body("endwith")?)
            }
            // Marks the text of the assistant for loss masks in training.
            "generation" => Kind::Block(self.outside_loops(|parser| parser.body("endgeneration"))?),
            "break" | "continue" if self.loops > 0 => match name {
                "break" => Kind::Break,
                _ => Kind::Continue,
            },
            "include" | "import" | "from" | "extends" | "block" | "autoescape" | "trans" | "do" => {
                return self.fault(format!("the tag {name:?} is not supported in chat templates"));
            }
            _ => return self.fault(format!("unexpected tag {name:?}")),
        };
        self.end_of_tag()?;
        Ok(kind)
    }

    /// A body outside of any loop for `break` and `continue`.
    fn outside_loops<T>(&mut self, f: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        let loops = std::mem::take(&mut self.loops);
        let result = f(self);
        self.loops = loops;
        result
    }

    fn target(&mut self, attributes: bool) -> Res<Target> {
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            if self.take_op("(") {
                targets.push(self.deeper(|parser| parser.target(false))?);
                self.expect_op(")")?;
            } else {
                let name = self.name()?;
                targets.push(match attributes && self.take_op(".") {
                    true => Target::Attr(name, self.name()?),
                    false => Target::Name(name),
                });
            }
            if !self.take_op(",") {
                break;
            }
            tuple = true;
            if self.is_name("in") || self.is_op("=") || self.is_op(")") {
                break;
            }
        }
        match targets.pop() {
            Some(target) if !tuple => Ok(target),
            Some(target) => {
                targets.push(target);
                Ok(Target::Tuple(targets))
            }
            None => self.fault("expected a name"),
        }
    }

    fn parameters(&mut self) -> Res<Vec<(String, Option<Expr>)>> {
        self.expect_op("(")?;
        let mut parameters = Vec::new();
        while !self.take_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
                if self.take_op(")") {
                    break;
                }
            }
            let name = self.name()?;
            let default = if self.take_op("=") { Some(self.expression()?) } else { None };
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    fn filters(&mut self) -> Res<Vec<Step>> {
        let mut steps = Vec::new();
        while self.take_op("|") {
            steps.push(self.filter()?);
        }
        Ok(steps)
    }

    fn filter(&mut self) -> Res<Step> {
        let mut name = self.name()?;
        while self.take_op(".") {
            name = format!("{name}.{}", self.name()?);
        }
        let arguments = if self.take_op("(") { self.arguments()? } else { Arguments::default() };
        Ok(Step::Filter(name, arguments))
    }

    /// An expression, or a tuple of comma-separated expressions.
    fn tuple(&mut self) -> Res<Expr> {
        self.tuple_of(|parser| parser.expression())
    }

    fn tuple_of(&mut self, mut one: impl FnMut(&mut Self) -> Res<Expr>) -> Res<Expr> {
        let first = one(self)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.take_op(",") {
            let ends =
                matches!(self.peek(), None | Some(Token::TagEnd | Token::OutputEnd)) || self.is_op(")");
            if ends {
                break;
            }
            items.push(one(self)?);
        }
        Ok(Expr::Tuple(items))
    }

    fn expression(&mut self) -> Res<Expr> {
        self.deeper(|parser| {
            let mut value = parser.or()?;
            let mut times = 0;
            while parser.take_name("if") {
                // They are nested.
                times += 1;
                if times > 4 {
                    return parser.fault("more than 4 chained conditional expressions");
                }
                let condition = parser.or()?;
                let otherwise = match parser.take_name("else") {
                    true => Some(Box::new(parser.expression()?)),
                    false => None,
                };
                value = Expr::If(Box::new([value, condition]), otherwise);
            }
            Ok(value)
        })
    }

    fn or(&mut self) -> Res<Expr> {
        let first = self.and()?;
        let mut all = vec![first];
        while self.take_name("or") {
            all.push(self.and()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::Or(all) })
    }

    fn and(&mut self) -> Res<Expr> {
        let first = self.not()?;
        let mut all = vec![first];
        while self.take_name("and") {
            all.push(self.not()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::And(all) })
    }

    fn not(&mut self) -> Res<Expr> {
        let mut times = 0;
        while self.take_name("not") {
            times += 1;
        }
        let mut value = self.compare()?;
        // An even number of negations still converts to a boolean.
        for _ in 0..if times > 0 { 2 - times % 2 } else { 0 } {
            value = Expr::Not(Box::new(value));
        }
        Ok(value)
    }

    fn compare(&mut self) -> Res<Expr> {
        const OPERATORS: [(&str, Op); 6] =
            [("==", Op::Eq), ("!=", Op::Ne), ("<", Op::Lt), ("<=", Op::Le), (">", Op::Gt), (">=", Op::Ge)];
        let first = self.binary(0)?;
        let mut rest = Vec::new();
        loop {
            let op = if let Some((_, op)) = OPERATORS.iter().find(|(text, _)| self.is_op(text)) {
                self.at += 1;
                *op
            } else if self.take_name("in") {
                Op::In
            } else if self.is_name("not")
                && matches!(self.tokens.get(self.at + 1), Some((Token::Name(name), _)) if name == "in")
            {
                self.at += 2;
                Op::NotIn
            } else {
                break;
            };
            rest.push((op, self.binary(0)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    fn binary(&mut self, level: usize) -> Res<Expr> {
        let Some(operators) = LEVELS.get(level) else { return self.unary(true) };
        let first = self.binary(level + 1)?;
        let mut rest = Vec::new();
        while let Some((_, op)) = operators.iter().find(|(text, _)| self.is_op(text)) {
            self.at += 1;
            rest.push((*op, self.binary(level + 1)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Chain(Box::new(first), rest) })
    }

    fn unary(&mut self, filters: bool) -> Res<Expr> {
        let value = if self.is_op("-") || self.is_op("+") {
            self.deeper(|parser| {
                let negative = parser.is_op("-");
                parser.at += 1;
                let value = Box::new(parser.unary(false)?);
                Ok(if negative { Expr::Negative(value) } else { Expr::Positive(value) })
            })?
        } else {
            self.primary()?
        };
        self.postfix(value, filters)
    }

    fn primary(&mut self) -> Res<Expr> {
        let Some(token) = self.peek().cloned() else {
            return self.fault("expected a value, found the end of the template");
        };
        let value = match token {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Expr::Bool(true),
                "false" | "False" => Expr::Bool(false),
                "none" | "None" => Expr::None,
                _ => Expr::Name(name),
            },
            Token::Int(value) => Expr::Int(value),
            Token::Float(value) => Expr::Float(value),
            Token::Str(mut text) => {
                while let Some((Token::Str(more), _)) = self.tokens.get(self.at + 1) {
                    text.push_str(more);
                    self.at += 1;
                }
                Expr::Str(text)
            }
            Token::Op("(") => {
                self.at += 1;
                let value = match self.is_op(")") {
                    true => Expr::Tuple(Vec::new()),
                    false => self.tuple()?,
                };
                self.expect_op(")")?;
                return Ok(value);
            }
            Token::Op("[") => {
                self.at += 1;
                let mut items = Vec::new();
                while !self.take_op("]") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.take_op("]") {
                            break;
                        }
                    }
                    items.push(self.expression()?);
                }
                return Ok(Expr::List(items));
            }
            Token::Op("{") => {
                self.at += 1;
                let mut items = Vec::new();
                while !self.take_op("}") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.take_op("}") {
                            break;
                        }
                    }
                    let key = self.expression()?;
                    self.expect_op(":")?;
                    items.push((key, self.expression()?));
                }
                return Ok(Expr::Dict(items));
            }
            _ => return self.fault(format!("expected a value{}", self.found())),
        };
        self.at += 1;
        Ok(value)
    }

    fn postfix(&mut self, value: Expr, filters: bool) -> Res<Expr> {
        let mut steps = Vec::new();
        loop {
            if self.take_op(".") {
                match self.peek() {
                    Some(Token::Int(index)) => {
                        steps.push(Step::Item(Expr::Int(*index)));
                        self.at += 1;
                    }
                    _ => steps.push(Step::Attr(self.name()?)),
                }
            } else if self.take_op("[") {
                steps.push(self.subscript()?);
            } else if self.take_op("(") {
                steps.push(Step::Call(self.arguments()?));
            } else if filters && self.take_op("|") {
                steps.push(self.filter()?);
            } else if filters && self.take_name("is") {
                steps.push(self.test()?);
            } else {
                break;
            }
        }
        Ok(if steps.is_empty() { value } else { Expr::Postfix(Box::new(value), steps) })
    }

    fn subscript(&mut self) -> Res<Step> {
        let mut parts = [None, None, None];
        let mut part = 0;
        loop {
            if self.take_op("]") {
                break;
            }
            if self.take_op(":") {
                part += 1;
                if part > 2 {
                    return self.fault("a slice has at most three parts");
                }
                continue;
            }
            if parts[part].is_some() {
                return self.fault(format!("expected \"]\"{}", self.found()));
            }
            parts[part] = Some(if part == 0 { self.tuple()? } else { self.expression()? });
        }
        match (part, parts) {
            (0, [Some(index), _, _]) => Ok(Step::Item(index)),
            (0, _) => self.fault("empty subscript"),
            (_, parts) => Ok(Step::Slice(parts)),
        }
    }

    fn test(&mut self) -> Res<Step> {
        let negated = self.take_name("not");
        let mut name = match self.peek() {
            Some(Token::Op(op @ ("==" | "!=" | "<" | ">" | "<=" | ">="))) => {
                let op = op.to_string();
                self.at += 1;
                op
            }
            _ => self.name()?,
        };
        while self.take_op(".") {
            name = format!("{name}.{}", self.name()?);
        }
        let ends = ["else", "or", "and", "is", "if", "in", "not", "recursive"];
        let arguments = match self.peek() {
            Some(Token::Op("(")) => {
                self.at += 1;
                self.arguments()?
            }
            Some(Token::Name(name)) if ends.contains(&name.as_str()) => Arguments::default(),
            Some(Token::Name(_) | Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{")) => {
                let value = self.primary()?;
                let value = self.deeper(|parser| parser.postfix(value, false))?;
                Arguments { positional: vec![Argument::One(value)], ..Arguments::default() }
            }
            _ => Arguments::default(),
        };
        Ok(Step::Test(name, arguments, negated))
    }

    /// Arguments up to the closing parenthesis.
    fn arguments(&mut self) -> Res<Arguments> {
        let mut arguments = Arguments::default();
        let mut first = true;
        while !self.take_op(")") {
            if !std::mem::take(&mut first) {
                self.expect_op(",")?;
                if self.take_op(")") {
                    break;
                }
            }
            if self.take_op("**") {
                arguments.spread = Some(Box::new(self.expression()?));
            } else if self.take_op("*") {
                arguments.positional.push(Argument::Spread(self.expression()?));
            } else if let (Some(Token::Name(name)), Some((Token::Op("="), _))) =
                (self.peek().cloned(), self.tokens.get(self.at + 1))
            {
                self.at += 2;
                arguments.named.push((name, self.expression()?));
            } else {
                arguments.positional.push(Argument::One(self.expression()?));
            }
        }
        Ok(arguments)
    }
}
