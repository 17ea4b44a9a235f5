//! Parsing Python pickles without executing code.
//!
//! A pickle is a program for a stack machine with instructions that call functions by name. This machine does not call
//! them: each call becomes an [`Object::Call`] with the function and its arguments, which readers interpret if they
//! know the function.

use std::collections::HashMap;

use super::cursor::Cursor;
use crate::{Error, ErrorKind, Result};

/// Maximum number of objects of a pickle.
const MAX_OBJECTS: usize = 20_000_000;

/// Modules that are rejected, including their submodules: they run code or access files or the network.
const CODE_MODULES: [&str; 30] = [
    "_pickle",
    "asyncio",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "ftplib",
    "http",
    "imp",
    "importlib",
    "marshal",
    "multiprocessing",
    "nt",
    "os",
    "pdb",
    "pickle",
    "pip",
    "popen2",
    "posix",
    "pty",
    "requests",
    "runpy",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "timeit",
    "urllib",
    "webbrowser",
];

/// Built-in functions that are rejected: they run code or open files.
const CODE_BUILTINS: [&str; 8] =
    ["__import__", "breakpoint", "compile", "eval", "exec", "execfile", "input", "open"];

/// Index of an object in [`Objects`].
pub(super) type Id = u32;

/// A Python object.
#[derive(Debug)]
pub(super) enum Object<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits; its value is not kept.
    Long,
    Float(f64),
    Text(&'a str),
    /// Bytes, or a string that is not UTF-8; the value is not kept.
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function or class, by module and name.
    Global(Box<(&'a str, &'a str)>),
    /// An object stored outside of the pickle, by its persistent id.
    Persistent(Id),
    Call(Box<Call>),
}

/// A function call that is not executed, and the operations on its result.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) function: Id,
    pub(super) args: Id,
    /// Whether it creates an instance by `__new__` (`NEWOBJ`) rather than calling a function (`REDUCE`).
    pub(super) is_instance: bool,
    /// Items set on the result.
    pub(super) items: Vec<(Id, Id)>,
    /// Values appended to the result.
    pub(super) values: Vec<Id>,
    /// State passed to `__setstate__` of the result (`BUILD`).
    pub(super) state: Option<Id>,
}

/// All objects of a pickle.
pub(super) struct Objects<'a> {
    objects: Vec<Object<'a>>,
    /// The unpickled object.
    pub(super) root: Id,
}

impl<'a> Objects<'a> {
    pub(super) fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Object<'a>> {
        self.objects.iter()
    }

    /// The elements of a tuple or a list.
    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Object::Tuple(parts) | Object::List(parts) => Some(parts),
            _ => None,
        }
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match self.get(id) {
            Object::Int(int) => Some(*int),
            _ => None,
        }
    }

    /// Module and name of a function or class.
    pub(super) fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.get(id) {
            Object::Global(global) => Some(**global),
            _ => None,
        }
    }
}

/// Parses a pickle up to its `STOP` instruction.
///
/// # Errors
/// [`ErrorKind::Format`] if it is damaged, has an unsupported instruction, or refers to a rejected function.
pub(super) fn read<'a>(cursor: &mut Cursor<'a>) -> Result<Objects<'a>> {
    Machine::default().run(cursor)
}

#[derive(Default)]
struct Machine<'a> {
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}

impl<'a> Machine<'a> {
    fn run(mut self, cursor: &mut Cursor<'a>) -> Result<Objects<'a>> {
        loop {
            let at = cursor.at();
            let opcode = cursor.u8().ok_or_else(|| bad("the pickle ends without a STOP instruction"))?;
            if opcode == b'.' {
                let root = self.pop()?;
                return Ok(Objects { objects: self.objects, root });
            }
            self.step(opcode, cursor).map_err(|e| e.context(format!("byte {at} of the pickle")))?;
        }
    }

    fn step(&mut self, opcode: u8, cursor: &mut Cursor<'a>) -> Result<()> {
        let cut = || bad("the file ends inside an instruction");
        match opcode {
            // Protocol and frame size are not needed.
            0x80 => drop(cursor.u8().ok_or_else(cut)?),
            0x95 => drop(cursor.u64().ok_or_else(cut)?),

            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }

            b'N' => self.push(Object::None)?,
            0x88 => self.push(Object::Bool(true))?,
            0x89 => self.push(Object::Bool(false))?,
            b'J' => {
                let int = i32::from_le_bytes(cursor.array().ok_or_else(cut)?);
                self.push(Object::Int(int.into()))?;
            }
            b'K' => {
                let int = cursor.u8().ok_or_else(cut)?;
                self.push(Object::Int(int.into()))?;
            }
            b'M' => {
                let int = cursor.u16().ok_or_else(cut)?;
                self.push(Object::Int(int.into()))?;
            }
            0x8a => {
                let len = cursor.u8().ok_or_else(cut)?;
                self.push(long(cursor.take(len.into()).ok_or_else(cut)?))?;
            }
            0x8b => {
                let len = cursor.u32().ok_or_else(cut)?;
                self.push(long(cursor.take(len as usize).ok_or_else(cut)?))?;
            }
            b'G' => {
                let float = f64::from_be_bytes(cursor.array().ok_or_else(cut)?);
                self.push(Object::Float(float))?;
            }
            b'I' | b'L' => {
                let line = ascii(cursor.line().ok_or_else(cut)?)?;
                self.push(match line {
                    "00" => Object::Bool(false),
                    "01" => Object::Bool(true),
                    _ => line.trim_end_matches('L').parse().map_or(Object::Long, Object::Int),
                })?;
            }
            b'F' => {
                let line = ascii(cursor.line().ok_or_else(cut)?)?;
                let float = line.parse().map_err(|_| bad(format!("{line:?} is not a number")))?;
                self.push(Object::Float(float))?;
            }

            0x8c | b'U' | b'C' => {
                let len = cursor.u8().ok_or_else(cut)?;
                self.text(opcode, cursor.take(len.into()).ok_or_else(cut)?)?;
            }
            b'X' | b'T' | b'B' => {
                let len = cursor.u32().ok_or_else(cut)?;
                self.text(opcode, cursor.take(len as usize).ok_or_else(cut)?)?;
            }
            0x8d | 0x8e | 0x96 => {
                let len = cursor.u64().and_then(|len| len.try_into().ok()).ok_or_else(cut)?;
                self.text(opcode, cursor.take(len).ok_or_else(cut)?)?;
            }
            b'S' => {
                let line = ascii(cursor.line().ok_or_else(cut)?)?;
                self.push(Object::Text(line.trim_matches(['\'', '"'])))?;
            }
            b'V' => {
                let line = cursor.line().ok_or_else(cut)?;
                self.text(opcode, line)?;
            }

            b')' => self.push(Object::Tuple(Vec::new()))?,
            b']' => self.push(Object::List(Vec::new()))?,
            b'}' => self.push(Object::Dict(Vec::new()))?,
            0x8f => self.push(Object::Set(Vec::new()))?,
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let parts = self.pop_many(count)?;
                self.push(Object::Tuple(parts))?;
            }
            b't' => {
                let parts = self.pop_mark()?;
                self.push(Object::Tuple(parts))?;
            }
            b'l' => {
                let parts = self.pop_mark()?;
                self.push(Object::List(parts))?;
            }
            0x91 => {
                let parts = self.pop_mark()?;
                self.push(Object::Set(parts))?;
            }
            b'd' => {
                let items = pairs(&self.pop_mark()?)?;
                self.push(Object::Dict(items))?;
            }
            b'a' => {
                let value = self.pop()?;
                self.append(vec![value])?;
            }
            b'e' | 0x90 => {
                let values = self.pop_mark()?;
                self.append(values)?;
            }
            b's' => {
                let item = self.pop_many(2)?;
                self.set_items(pairs(&item)?)?;
            }
            b'u' => {
                let items = pairs(&self.pop_mark()?)?;
                self.set_items(items)?;
            }

            b'q' => {
                let key = cursor.u8().ok_or_else(cut)?;
                self.memoize(key.into())?;
            }
            b'r' => {
                let key = cursor.u32().ok_or_else(cut)?;
                self.memoize(key)?;
            }
            0x94 => self.memoize(self.memo.len() as u32)?,
            b'p' => {
                let key = number(cursor.line().ok_or_else(cut)?)?;
                self.memoize(key)?;
            }
            b'h' => {
                let key = cursor.u8().ok_or_else(cut)?;
                self.get_memo(key.into())?;
            }
            b'j' => {
                let key = cursor.u32().ok_or_else(cut)?;
                self.get_memo(key)?;
            }
            b'g' => {
                let key = number(cursor.line().ok_or_else(cut)?)?;
                self.get_memo(key)?;
            }

            b'c' => {
                let module = ascii(cursor.line().ok_or_else(cut)?)?;
                let name = ascii(cursor.line().ok_or_else(cut)?)?;
                self.global(module, name)?;
            }
            0x93 => {
                let parts = self.pop_many(2)?;
                let (Object::Text(module), Object::Text(name)) = (self.get(parts[0]), self.get(parts[1]))
                else {
                    return Err(bad("the name of a global is not a string"));
                };
                let (module, name) = (*module, *name);
                self.global(module, name)?;
            }
            b'i' => {
                let module = ascii(cursor.line().ok_or_else(cut)?)?;
                let name = ascii(cursor.line().ok_or_else(cut)?)?;
                let args = self.pop_mark()?;
                self.global(module, name)?;
                self.push(Object::Tuple(args))?;
                self.call(false)?;
            }
            b'o' => {
                let mut args = self.pop_mark()?;
                if args.is_empty() {
                    return Err(bad("OBJ instruction without a class"));
                }
                let class = args.remove(0);
                self.stack.push(class);
                self.push(Object::Tuple(args))?;
                self.call(false)?;
            }
            b'R' => self.call(false)?,
            0x81 => self.call(true)?,
            0x92 => {
                // Keyword arguments of the instance are dropped.
                self.pop()?;
                self.call(true)?;
            }
            b'b' => {
                let state = self.pop()?;
                let top = self.top()?;
                if let Object::Call(call) = &mut self.objects[top as usize] {
                    call.state = Some(state);
                }
            }
            b'Q' => {
                let description = self.pop()?;
                self.push(Object::Persistent(description))?;
            }
            b'P' => {
                let line = ascii(cursor.line().ok_or_else(cut)?)?;
                self.push(Object::Text(line))?;
                let description = self.pop()?;
                self.push(Object::Persistent(description))?;
            }
            _ => return Err(bad(format!("unsupported instruction {opcode:#04x}"))),
        }
        Ok(())
    }

    fn get(&self, id: Id) -> &Object<'a> {
        &self.objects[id as usize]
    }

    fn push(&mut self, object: Object<'a>) -> Result<()> {
        if self.objects.len() == MAX_OBJECTS {
            return Err(bad(format!("more than {MAX_OBJECTS} objects")));
        }
        self.stack.push(self.objects.len() as Id);
        self.objects.push(object);
        Ok(())
    }

    /// Index of the stack above the innermost mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id> {
        let top = (self.stack.len() > self.floor()).then(|| self.stack.last().copied()).flatten();
        top.ok_or_else(|| bad("the stack is empty"))
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>> {
        let from = self.stack.len().checked_sub(count).filter(|&from| from >= self.floor());
        Ok(self.stack.split_off(from.ok_or_else(|| bad("the stack is empty"))?))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| bad("no mark on the stack"))?;
        Ok(self.stack.split_off(mark))
    }

    fn memoize(&mut self, key: u32) -> Result<()> {
        self.memo.insert(key, self.top()?);
        Ok(())
    }

    fn get_memo(&mut self, key: u32) -> Result<()> {
        let id = self.memo.get(&key).ok_or_else(|| bad(format!("no memo entry {key}")))?;
        self.stack.push(*id);
        Ok(())
    }

    /// Pushes a string or bytes. The string type of Python 2 is a string if it is UTF-8, else bytes.
    fn text(&mut self, opcode: u8, bytes: &'a [u8]) -> Result<()> {
        let object = match (opcode, std::str::from_utf8(bytes)) {
            (b'B' | b'C' | 0x8e | 0x96, _) => Object::Bytes,
            (b'U' | b'T', Err(_)) => Object::Bytes,
            (_, Ok(text)) => Object::Text(text),
            (_, Err(e)) => return Err(bad(format!("a string is not UTF-8: {e}"))),
        };
        self.push(object)
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<()> {
        let package = module.split('.').next().unwrap_or(module);
        let is_builtin = ["builtins", "__builtin__"].contains(&module);
        if CODE_MODULES.contains(&package) || is_builtin && CODE_BUILTINS.contains(&name) {
            return Err(refusal(module, name));
        }
        self.push(Object::Global(Box::new((module, name))))
    }

    fn call(&mut self, is_instance: bool) -> Result<()> {
        let parts = self.pop_many(2)?;
        let (function, args) = (parts[0], parts[1]);
        let call = Call { function, args, is_instance, items: Vec::new(), values: Vec::new(), state: None };
        self.push(Object::Call(Box::new(call)))
    }

    fn append(&mut self, new: Vec<Id>) -> Result<()> {
        let top = self.top()?;
        match &mut self.objects[top as usize] {
            Object::List(values) | Object::Set(values) => values.extend(new),
            Object::Call(call) => call.values.extend(new),
            _ => return Err(bad("append to an object that is not a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, new: Vec<(Id, Id)>) -> Result<()> {
        let top = self.top()?;
        match &mut self.objects[top as usize] {
            Object::Dict(items) => items.extend(new),
            Object::Call(call) => call.items.extend(new),
            _ => return Err(bad("set items of an object that is not a dict")),
        }
        Ok(())
    }
}

/// The error for a pickle that calls `module.name`.
pub(super) fn refusal(module: &str, name: &str) -> Error {
    bad(format!("refusing to run `{module}.{name}`, which the file calls"))
        .hint("pickles are parsed without executing code; ask the publisher for a safetensors file")
}

fn pairs(ids: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = ids.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(bad("a key without a value"));
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

/// A little-endian integer in two's complement.
fn long(bytes: &[u8]) -> Object<'static> {
    if bytes.len() > 8 {
        return Object::Long;
    }
    let fill = if bytes.last().is_some_and(|&b| b >= 0x80) { 0xff } else { 0 };
    let mut all = [fill; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Object::Int(i64::from_le_bytes(all))
}

fn ascii(line: &[u8]) -> Result<&str> {
    std::str::from_utf8(line).map_err(|_| bad("a name is not UTF-8"))
}

fn number(line: &[u8]) -> Result<u32> {
    ascii(line)?.trim().parse().map_err(|_| bad("a memo key is not a number"))
}
