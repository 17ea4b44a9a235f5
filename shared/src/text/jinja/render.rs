//! Evaluates the syntax tree of a template.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::parser::{Argument, Arguments, Expr, ForLoop, Kind, MacroBody, Node, Op, Step, Target};
use super::state::{CallArguments, Renderer, too_deep};
use super::value::{Loop, Object, Scope, Value};
use super::{Cause, DEPTH, Fault, Res, STEPS, clock, format};

/// The global functions of a template.
const FUNCTIONS: [&str; 7] =
    ["range", "dict", "namespace", "joiner", "cycler", "raise_exception", "strftime_now"];

/// Maximum length of a `range`, as in Jinja's sandbox.
const RANGE: i64 = 100_000;

/// How the execution of a body ended.
#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

/// Renders `nodes`.
pub(super) fn render(nodes: &[Node], variables: &[(&str, serde_json::Value)], now: u64) -> Res<String> {
    let mut renderer = Renderer::new(now);
    for (name, value) in variables {
        let value = renderer.value_of_json(value)?;
        renderer.variables.push(((*name).into(), value));
    }
    // The steps so far measure the size of the input, one for 32 bytes.
    let input = (u64::MAX - renderer.left) * 16;
    renderer.steps = STEPS.saturating_add(input);
    renderer.left = renderer.steps;
    let done = renderer.body(nodes);
    let line = renderer.line;
    for object in std::mem::take(&mut renderer.namespaces) {
        if let Object::Namespace(attributes) = &*object {
            let held = attributes.take();
            drop(held);
            renderer.namespaces.push(object);
        }
    }
    done.map_err(|fault| fault.on(line))?;
    Ok(renderer.out)
}

impl Renderer {
    fn value_of_json(&mut self, value: &serde_json::Value) -> Res<Value> {
        use serde_json::Value as Json;
        self.charge(1)?;
        match value {
            Json::Null => Ok(Value::None),
            Json::Bool(value) => Ok(Value::Bool(*value)),
            Json::Number(number) => Ok(match number.as_i64() {
                Some(value) => Value::Int(value),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            }),
            Json::String(text) => self.text(text),
            Json::Array(values) => {
                let items = values.iter().map(|value| self.value_of_json(value)).collect::<Res<_>>()?;
                self.list(items)
            }
            Json::Object(map) => {
                let items = map.iter().map(|(key, value)| Ok((self.text(key)?, self.value_of_json(value)?)));
                let items = items.collect::<Res<Vec<_>>>()?;
                self.entries(items)
            }
        }
    }

    fn write(&mut self, text: &str) -> Res<()> {
        self.charge_text(text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    fn body(&mut self, nodes: &[Node]) -> Res<Flow> {
        self.deeper(|renderer| {
            for node in nodes {
                renderer.charge(1)?;
                renderer.line = node.line;
                let flow = renderer.node(node).map_err(|fault| fault.on(node.line))?;
                if flow != Flow::On {
                    return Ok(flow);
                }
            }
            Ok(Flow::On)
        })
    }

    /// The output of `f`.
    fn written<T>(&mut self, f: impl FnOnce(&mut Self) -> Res<T>) -> Res<(String, T)> {
        let outer = std::mem::take(&mut self.out);
        let result = f(self);
        let text = std::mem::replace(&mut self.out, outer);
        Ok((text, result?))
    }

    fn scoped<T>(&mut self, scope: Scope, f: impl FnOnce(&mut Self) -> Res<T>) -> Res<T> {
        self.scopes.push(scope);
        let result = f(self);
        self.scopes.pop();
        result
    }

    fn node(&mut self, node: &Node) -> Res<Flow> {
        match &node.kind {
            Kind::Data(text) => self.write(text)?,
            Kind::Output(expr) => {
                let value = self.eval(expr)?;
                match &value {
                    Value::Str(text) => self.write(text)?,
                    other => {
                        let text = self.shown(other)?;
                        self.write(&text)?;
                    }
                }
            }
            Kind::If(arms, otherwise) => {
                for (condition, body) in arms {
                    if self.eval(condition)?.truth() {
                        return self.body(body);
                    }
                }
                return self.body(otherwise);
            }
            Kind::For(parts) => {
                let over = self.eval(&parts.over)?;
                self.run_loop(parts, &over, 0)?;
            }
            Kind::Set(target, expr) => {
                let value = self.eval(expr)?;
                self.assign(target, value)?;
            }
            Kind::SetBlock(target, filters, body) => {
                let (text, flow) = self.written(|r| r.scoped(Vec::new(), |r| r.body(body)))?;
                let text = self.text(text)?;
                let value = self.steps(text, filters)?;
                self.assign(target, value)?;
                return Ok(flow);
            }
            Kind::Macro(body) => {
                let made = self.macro_of(body)?;
                self.assign(&Target::Name(body.name.clone()), made)?;
            }
            Kind::Call(call, body) => {
                let caller = self.macro_of(body)?;
                let Expr::Postfix(callee, steps) = call else {
                    return Err(Fault::failed("the call tag has no call"));
                };
                let Some((Step::Call(arguments), before)) = steps.split_last() else {
                    return Err(Fault::failed("the call tag has no call"));
                };
                let callee = self.eval(callee)?;
                let callee = self.steps(callee, before)?;
                let mut given = self.arguments(arguments)?;
                given.named.push(("caller".into(), caller));
                let value = self.call(&callee, given)?;
                let text = self.shown(&value)?;
                self.write(&text)?;
            }
            Kind::Filter(filters, body) => {
                let (text, flow) = self.written(|r| r.scoped(Vec::new(), |r| r.body(body)))?;
                let text = self.text(text)?;
                let value = self.steps(text, filters)?;
                let text = self.shown(&value)?;
                self.write(&text)?;
                return Ok(flow);
            }
            Kind::With(values, body) => {
                let mut scope = Vec::new();
                for (target, expr) in values {
                    if let Target::Name(name) = target {
                        scope.push((name.as_str().into(), self.eval(expr)?));
                    }
                }
                return self.scoped(scope, |r| r.body(body));
            }
            Kind::Block(body) => return self.scoped(Vec::new(), |r| r.body(body)),
            Kind::Break => return Ok(Flow::Break),
            Kind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn run_loop(&mut self, parts: &Arc<ForLoop>, over: &Value, level: usize) -> Res<()> {
        let mut items = self.iterate(over)?;
        if let Some(filter) = &parts.filter {
            let mut kept = Vec::new();
            for item in items {
                let holds = self.scoped(Vec::new(), |r| {
                    r.assign(&parts.target, item.clone())?;
                    r.eval(filter)
                })?;
                if holds.truth() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            self.body(&parts.otherwise)?;
            return Ok(());
        }
        let items = self.items(items)?;
        let state = Rc::new(Object::Loop(Loop {
            items: items.clone(),
            index: Cell::new(0),
            level,
            again: parts.recursive.then(|| parts.clone()),
            changed: RefCell::new(None),
        }));
        for (i, item) in items.items.iter().enumerate() {
            self.charge(1)?;
            if let Object::Loop(state) = &*state {
                state.index.set(i);
            }
            let scope = vec![("loop".into(), Value::Object(state.clone()))];
            let flow = self.scoped(scope, |r| {
                r.assign(&parts.target, item.clone())?;
                r.body(&parts.body)
            })?;
            if flow == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    fn assign(&mut self, target: &Target, value: Value) -> Res<()> {
        match target {
            Target::Name(name) => {
                let Some(scope) = self.scopes.last_mut() else { return Ok(()) };
                match scope.iter_mut().find(|(known, _)| **known == **name) {
                    Some((_, old)) => *old = value,
                    None => scope.push((name.as_str().into(), value)),
                }
                let known = scope.len() as u64;
                self.charge(1 + known / 16)
            }
            Target::Attr(name, attribute) => {
                let namespace = self.lookup(name)?;
                match &namespace {
                    Value::Object(object) if matches!(&**object, Object::Namespace(_)) => {
                        self.set_attribute(object, attribute, value)
                    }
                    _ => Err(Fault::failed("cannot assign attribute on non-namespace object")),
                }
            }
            Target::Tuple(targets) => {
                let values = self.iterate(&value)?;
                if values.len() != targets.len() {
                    return Err(Fault::failed(format!(
                        "{} values to unpack, expected {}",
                        values.len(),
                        targets.len()
                    )));
                }
                targets.iter().zip(values).try_for_each(|(target, value)| self.assign(target, value))
            }
        }
    }

    fn set_attribute(&mut self, object: &Object, name: &str, value: Value) -> Res<()> {
        if name.starts_with('_') {
            return Err(Fault::failed(format!("namespace attribute {name:?} begins with _")));
        }
        let Object::Namespace(attributes) = object else { return Ok(()) };
        let mut attributes = attributes.borrow_mut();
        self.charge(1 + attributes.len() as u64 / 16)?;
        match attributes.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, old)) => *old = value,
            None => attributes.push((name.into(), value)),
        }
        Ok(())
    }

    /// The value of a variable; undefined if it is not set.
    fn lookup(&mut self, name: &str) -> Res<Value> {
        let mut passed = 0;
        let mut found = None;
        let local = self.scopes[self.base.min(self.scopes.len())..].iter().rev();
        for scope in local.chain(self.scopes.first()).chain([&self.variables]) {
            passed += scope.len() as u64;
            found = scope.iter().find(|(known, _)| **known == *name).map(|(_, value)| value.clone());
            if found.is_some() {
                break;
            }
        }
        self.charge(1 + passed / 16)?;
        Ok(match found {
            Some(value) => value,
            None if FUNCTIONS.contains(&name) => Value::Object(Rc::new(Object::Function(name.into()))),
            None => Value::Undefined(name.into()),
        })
    }

    fn macro_of(&mut self, body: &Arc<MacroBody>) -> Res<Value> {
        let mut seen: Scope = Vec::new();
        for scope in &self.scopes[self.base.min(self.scopes.len())..] {
            seen.extend(scope.iter().cloned());
        }
        self.charge(seen.len() as u64 + 1)?;
        let depth = seen.iter().map(|(_, value)| value.depth()).max().unwrap_or(0) + 1;
        match depth > DEPTH {
            true => Err(too_deep()),
            false => {
                seen.reverse();
                Ok(Value::Object(Rc::new(Object::Macro { body: body.clone(), seen: Rc::new(seen), depth })))
            }
        }
    }

    pub(super) fn eval(&mut self, expr: &Expr) -> Res<Value> {
        self.charge(1)?;
        self.deeper(|renderer| renderer.value(expr))
    }

    fn value(&mut self, expr: &Expr) -> Res<Value> {
        match expr {
            Expr::None => Ok(Value::None),
            Expr::Bool(value) => Ok(Value::Bool(*value)),
            Expr::Int(value) => Ok(Value::Int(*value)),
            Expr::Float(value) => Ok(Value::Float(*value)),
            Expr::Str(text) => self.text(text),
            Expr::Name(name) => self.lookup(name),
            Expr::List(items) => {
                let items = items.iter().map(|item| self.eval(item)).collect::<Res<_>>()?;
                self.list(items)
            }
            Expr::Tuple(items) => {
                let items = items.iter().map(|item| self.eval(item)).collect::<Res<_>>()?;
                self.tuple(items)
            }
            Expr::Dict(items) => {
                let items = items.iter().map(|(key, value)| Ok((self.eval(key)?, self.eval(value)?)));
                let items = items.collect::<Res<_>>()?;
                self.dict(items)
            }
            Expr::Chain(first, rest) => self.chain(first, rest),
            Expr::Compare(first, rest) => {
                let mut left = self.eval(first)?;
                for (op, right) in rest {
                    let right = self.eval(right)?;
                    if !self.compare(*op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::And(all) => {
                let mut value = Value::None;
                for expr in all {
                    value = self.eval(expr)?;
                    if !value.truth() {
                        break;
                    }
                }
                Ok(value)
            }
            Expr::Or(all) => {
                let mut value = Value::None;
                for expr in all {
                    value = self.eval(expr)?;
                    if value.truth() {
                        break;
                    }
                }
                Ok(value)
            }
            Expr::Not(expr) => Ok(Value::Bool(!self.eval(expr)?.truth())),
            Expr::Negative(expr) => match self.eval(expr)? {
                Value::Float(value) => Ok(Value::Float(-value)),
                value => match value.int() {
                    Some(number) => number.checked_neg().map(Value::Int).ok_or_else(too_large),
                    None => Err(operand(&value, "-")),
                },
            },
            Expr::Positive(expr) => match self.eval(expr)? {
                Value::Bool(value) => Ok(Value::Int(i64::from(value))),
                value @ (Value::Int(_) | Value::Float(_)) => Ok(value),
                value => Err(operand(&value, "+")),
            },
            Expr::If(parts, otherwise) => {
                let [then, condition] = &**parts;
                match self.eval(condition)?.truth() {
                    true => self.eval(then),
                    false => match otherwise {
                        Some(expr) => self.eval(expr),
                        None => Ok(Value::Undefined("the value of an if expression without else".into())),
                    },
                }
            }
            Expr::Postfix(value, steps) => {
                let value = self.eval(value)?;
                self.steps(value, steps)
            }
        }
    }

    fn chain(&mut self, first: &Expr, rest: &[(Op, Expr)]) -> Res<Value> {
        let mut left = self.eval(first)?;
        if matches!(rest.first(), Some((Op::Concat, _))) {
            let mut text = self.shown(&left)?.to_string();
            for (_, right) in rest {
                let right = self.eval(right)?;
                let right = self.shown(&right)?;
                self.charge_text(right.len())?;
                text.push_str(&right);
            }
            return self.text(text);
        }
        for (op, right) in rest {
            let right = self.eval(right)?;
            left = self.arithmetic(*op, &left, &right)?;
        }
        Ok(left)
    }

    fn steps(&mut self, mut value: Value, steps: &[Step]) -> Res<Value> {
        for step in steps {
            self.charge(1)?;
            value = self.step(&value, step)?;
        }
        Ok(value)
    }

    fn step(&mut self, value: &Value, step: &Step) -> Res<Value> {
        match step {
            Step::Attr(name) => self.attribute(value, name),
            Step::Item(index) => {
                let index = self.eval(index)?;
                self.item(value, &index)
            }
            Step::Slice(parts) => {
                let mut bounds = [None; 3];
                for (bound, part) in bounds.iter_mut().zip(parts) {
                    let Some(part) = part else { continue };
                    *bound = match self.eval(part)? {
                        Value::None => None,
                        value => match value.int() {
                            Some(value) => Some(value),
                            None => return Err(Fault::failed("slice indices must be integers or None")),
                        },
                    };
                }
                self.slice(value, bounds)
            }
            Step::Call(arguments) => {
                let given = self.arguments(arguments)?;
                self.call(value, given)
            }
            Step::Filter(name, arguments) => {
                let given = self.arguments(arguments)?;
                self.filter(name, value, &given)
            }
            Step::Test(name, arguments, negated) => {
                let given = self.arguments(arguments)?;
                Ok(Value::Bool(self.test(name, value, &given)? != *negated))
            }
        }
    }

    fn arguments(&mut self, arguments: &Arguments) -> Res<CallArguments> {
        let mut given = CallArguments::default();
        for argument in &arguments.positional {
            match argument {
                Argument::One(expr) => given.positional.push(self.eval(expr)?),
                Argument::Spread(expr) => {
                    let value = self.eval(expr)?;
                    given.positional.extend(self.iterate(&value)?);
                }
            }
        }
        for (name, expr) in &arguments.named {
            given.named.push((name.as_str().into(), self.eval(expr)?));
        }
        if let Some(expr) = &arguments.spread {
            match self.eval(expr)? {
                Value::Dict(entries) => {
                    self.charge(entries.items.len() as u64)?;
                    for (key, value) in &entries.items {
                        let Value::Str(key) = key else {
                            return Err(Fault::failed("keywords must be strings"));
                        };
                        given.named.push((key.clone(), value.clone()));
                    }
                }
                other => {
                    return Err(Fault::failed(format!(
                        "argument after ** must be a dict, not {}",
                        other.kind()
                    )));
                }
            }
        }
        Ok(given)
    }

    pub(super) fn call(&mut self, callee: &Value, given: CallArguments) -> Res<Value> {
        self.charge(1)?;
        let Value::Object(object) = callee else {
            return Err(Fault::failed(match callee {
                Value::Undefined(what) => format!("'{what}' is undefined"),
                other => format!("'{}' object is not callable", other.kind()),
            }));
        };
        match &**object {
            Object::Function(name) => self.function(name, given),
            Object::Method(value, name) => self.method(value, name, &given),
            Object::Macro { body, seen, .. } => self.deeper(|r| r.call_macro(body, seen, given)),
            Object::Loop(Loop { again: Some(parts), level, .. }) => {
                let over = given.required(0, "iterable")?.clone();
                let (parts, level) = (parts.clone(), level + 1);
                let (text, ()) = self.written(|r| r.deeper(|r| r.run_loop(&parts, &over, level)))?;
                self.text(text)
            }
            Object::Joiner(separator, used) => {
                Ok(Value::Str(if used.replace(true) { separator.clone() } else { "".into() }))
            }
            other => {
                let _ = other;
                Err(Fault::failed(format!("'{}' object is not callable", callee.kind())))
            }
        }
    }

    fn call_macro(&mut self, body: &Arc<MacroBody>, seen: &Rc<Scope>, given: CallArguments) -> Res<Value> {
        let CallArguments { positional, named } = given;
        let mut named: Vec<(Rc<str>, Value)> = named;
        let mut positional = positional.into_iter();
        self.charge(seen.len() as u64)?;
        let base = std::mem::replace(&mut self.base, self.scopes.len());
        self.scopes.push(seen.to_vec());
        self.scopes.push(Vec::new());
        let result = self.written(|r| {
            for (name, default) in &body.arguments {
                let at = named.iter().position(|(given, _)| **given == **name);
                let value = match (positional.next(), at, default) {
                    (Some(_), Some(_), _) => {
                        return Err(Fault::failed(format!(
                            "macro '{}' got multiple values for argument {name}",
                            body.name
                        )));
                    }
                    (Some(value), None, _) => value,
                    (None, Some(at), _) => named.remove(at).1,
                    (None, None, Some(expr)) => r.eval(expr)?,
                    (None, None, None) => {
                        Value::Undefined(format!("parameter '{name}' was not provided").into())
                    }
                };
                r.assign(&Target::Name(name.clone()), value)?;
            }
            if let Some(at) = named.iter().position(|(name, _)| &**name == "caller") {
                let caller = named.remove(at).1;
                r.assign(&Target::Name("caller".into()), caller)?;
            }
            let rest = positional.collect();
            let rest = r.tuple(rest)?;
            r.assign(&Target::Name("varargs".into()), rest)?;
            let rest = named.into_iter().map(|(name, value)| (Value::Str(name), value)).collect();
            let rest = r.dict(rest)?;
            r.assign(&Target::Name("kwargs".into()), rest)?;
            r.body(&body.body)
        });
        self.scopes.truncate(self.base);
        self.base = base;
        let (text, _) = result?;
        self.text(text)
    }

    fn function(&mut self, name: &str, given: CallArguments) -> Res<Value> {
        match name {
            "range" => {
                let number = |i: usize| given.int(i, "range");
                let (start, stop, step) = match (number(0)?, number(1)?, number(2)?) {
                    (Some(stop), None, _) => (0, stop, 1),
                    (Some(start), Some(stop), step) => (start, stop, step.unwrap_or(1)),
                    (None, ..) => return Err(Fault::failed("range expected at least 1 argument, got 0")),
                };
                let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
                let count = match step {
                    0 => return Err(Fault::failed("range() arg 3 must not be zero")),
                    _ if span <= 0 => 0,
                    step => (span - 1) / step.saturating_abs() + 1,
                };
                if count > RANGE {
                    return Err(Fault::failed(format!(
                        "Range too big. The sandbox blocks ranges larger than {RANGE}."
                    )));
                }
                self.charge(count as u64)?;
                self.list((0..count).map(|i| Value::Int(start + i * step)).collect())
            }
            "dict" => {
                let mut items = match given.positional.first() {
                    None => Vec::new(),
                    Some(Value::Dict(entries)) => entries.items.clone(),
                    Some(pairs) => {
                        let mut items = Vec::new();
                        for pair in self.iterate(pairs)? {
                            match <[Value; 2]>::try_from(self.iterate(&pair)?) {
                                Ok([key, value]) => items.push((key, value)),
                                Err(_) => {
                                    return Err(Fault::failed("dict() argument must be a sequence of pairs"));
                                }
                            }
                        }
                        items
                    }
                };
                items.extend(given.named.into_iter().map(|(name, value)| (Value::Str(name), value)));
                self.dict(items)
            }
            "namespace" => {
                let object = Rc::new(Object::Namespace(RefCell::default()));
                self.charge(4)?;
                self.namespaces.push(object.clone());
                if let Some(Value::Dict(entries)) = given.positional.first() {
                    for (key, value) in &entries.items {
                        let Value::Str(key) = key else {
                            return Err(Fault::failed("namespace() keys must be strings"));
                        };
                        self.set_attribute(&object, key, value.clone())?;
                    }
                }
                for (name, value) in given.named {
                    self.set_attribute(&object, &name, value)?;
                }
                Ok(Value::Object(object))
            }
            "joiner" => {
                let separator = given.str(0, "sep")?.unwrap_or(", ").into();
                Ok(Value::Object(Rc::new(Object::Joiner(separator, Cell::new(false)))))
            }
            "cycler" => {
                if given.positional.is_empty() {
                    return Err(Fault::failed("at least one item has to be provided"));
                }
                let items = self.items(given.positional)?;
                match items.depth >= DEPTH {
                    true => Err(too_deep()),
                    false => Ok(Value::Object(Rc::new(Object::Cycler(items, Cell::new(0))))),
                }
            }
            "raise_exception" => {
                let message = self.shown(given.required(0, "message")?)?.to_string();
                Err(Fault { cause: Cause::Raised, message, line: 0 })
            }
            "strftime_now" => {
                let format = given.str(0, "format")?.unwrap_or_default().to_string();
                let text = clock::strftime(self, &format)?;
                self.text(text)
            }
            _ => Err(Fault::failed(format!("no function named {name:?}"))),
        }
    }

    fn arithmetic(&mut self, op: Op, left: &Value, right: &Value) -> Res<Value> {
        for value in [left, right] {
            if let Value::Undefined(what) = value
                && !(op == Op::Mod && matches!(left, Value::Str(_)))
            {
                return Err(Fault::failed(format!("'{what}' is undefined")));
            }
        }
        match (op, left, right) {
            (Op::Add, Value::Str(a), Value::Str(b)) => {
                self.charge_text(a.len() + b.len())?;
                let text: Rc<str> = [&**a, &**b].concat().into();
                return Ok(Value::Str(text));
            }
            (Op::Add, Value::List(a), Value::List(b)) => {
                self.charge((a.items.len() + b.items.len()) as u64)?;
                return self.list([&a.items[..], &b.items[..]].concat());
            }
            (Op::Add, Value::Tuple(a), Value::Tuple(b)) => {
                self.charge((a.items.len() + b.items.len()) as u64)?;
                return self.tuple([&a.items[..], &b.items[..]].concat());
            }
            (Op::Mul, text @ Value::Str(_), times) | (Op::Mul, times, text @ Value::Str(_)) => {
                if let (Value::Str(text), Some(times)) = (text, times.int()) {
                    let times = usize::try_from(times).unwrap_or(0);
                    self.charge_times(text.len(), times)?;
                    return Ok(Value::str(text.repeat(if text.is_empty() { 0 } else { times })));
                }
            }
            (Op::Mul, list @ (Value::List(_) | Value::Tuple(_)), times)
            | (Op::Mul, times, list @ (Value::List(_) | Value::Tuple(_))) => {
                if let (Value::List(items) | Value::Tuple(items), Some(times)) = (list, times.int()) {
                    let times = usize::try_from(times).unwrap_or(0);
                    let times = if items.items.is_empty() { 0 } else { times };
                    self.charge((items.items.len() as u64).saturating_mul(times as u64))?;
                    let items = std::iter::repeat_n(&items.items, times).flatten().cloned().collect();
                    return if matches!(list, Value::List(_)) { self.list(items) } else { self.tuple(items) };
                }
            }
            (Op::Mod, Value::Str(text), _) => {
                let text = format::percent(self, text, right)?;
                return self.text(text);
            }
            _ => {}
        }
        let wrong = || {
            let sign = match op {
                Op::Add => "+",
                Op::Sub => "-",
                Op::Mul => "*",
                Op::Div => "/",
                Op::Floor => "//",
                Op::Mod => "%",
                _ => "**",
            };
            Fault::failed(format!(
                "unsupported operand type(s) for {sign}: '{}' and '{}'",
                left.kind(),
                right.kind()
            ))
        };
        if let (Some(a), Some(b)) = (left.int(), right.int()) {
            let by_zero = || Fault::failed("division by zero");
            return match op {
                Op::Add => a.checked_add(b),
                Op::Sub => a.checked_sub(b),
                Op::Mul => a.checked_mul(b),
                Op::Div if b == 0 => return Err(by_zero()),
                Op::Div => return Ok(Value::Float(a as f64 / b as f64)),
                Op::Floor | Op::Mod if b == 0 => return Err(by_zero()),
                Op::Floor => {
                    a.checked_div(b).map(|q| if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q })
                }
                Op::Mod => a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
                Op::Pow if b < 0 => return Ok(Value::Float((a as f64).powf(b as f64))),
                Op::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
                _ => return Err(wrong()),
            }
            .map(Value::Int)
            .ok_or_else(too_large);
        }
        let (Some(a), Some(b)) = (left.number(), right.number()) else { return Err(wrong()) };
        Ok(Value::Float(match op {
            Op::Add => a + b,
            Op::Sub => a - b,
            Op::Mul => a * b,
            Op::Div | Op::Floor | Op::Mod if b == 0.0 => return Err(Fault::failed("division by zero")),
            Op::Div => a / b,
            Op::Floor => (a / b).floor(),
            Op::Mod => a - b * (a / b).floor(),
            Op::Pow => a.powf(b),
            _ => return Err(wrong()),
        }))
    }
}

fn too_large() -> Fault {
    Fault::failed("integer of more than 64 bits")
}

fn operand(value: &Value, sign: &str) -> Fault {
    Fault::failed(match value {
        Value::Undefined(what) => format!("'{what}' is undefined"),
        other => format!("bad operand type for unary {sign}: '{}'", other.kind()),
    })
}
