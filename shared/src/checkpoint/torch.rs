//! PyTorch checkpoints: the zip format (1.6 and later) and the legacy format.

use std::collections::HashMap;
use std::path::Path;

use super::cursor::Cursor;
use super::metadata::{List, Metadata, Value};
use super::pickle::{self, Call, Id, Object, Objects};
use super::{Bytes, Contents, StorageType, StoredTensor, zip};
use crate::{Error, ErrorKind, Result};

/// First bytes of the legacy format: a pickle of the magic number.
const MAGIC: [u8; 15] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];

/// File extensions for which pickles of protocol 0 are accepted.
const ENDINGS: [&str; 7] = ["bin", "pt", "pth", "ckpt", "tar", "pkl", "pickle"];

/// Keys under which training code stores the state dict of the model.
const WRAPPERS: [&str; 5] = ["state_dict", "model_state_dict", "model", "module", "net"];

/// Keys next to the state dict with the state of training.
const TRAINING: [&str; 16] = [
    "amp",
    "callbacks",
    "cuda_rng_state",
    "loops",
    "lr_scheduler",
    "lr_schedulers",
    "opt",
    "optim",
    "optimizer",
    "optimizer_state_dict",
    "optimizer_states",
    "random_rng_state",
    "rng_state",
    "scaler",
    "scheduler",
    "scheduler_state_dict",
];

/// Maximum nesting depth of objects.
const MAX_DEPTH: usize = 200;
/// Maximum length of a tensor name.
const MAX_NAME: usize = 4096;

pub(super) fn looks_like(path: &Path, file: &[u8]) -> bool {
    let is_pickle = matches!(file, [0x80, 2..=5, ..]);
    let is_old_pickle = matches!(file, [b'c' | b'(', ..])
        && path.extension().is_some_and(|e| ENDINGS.iter().any(|n| e == *n));
    zip::looks_like(file) || is_pickle || is_old_pickle
}

pub(super) fn read(path: &Path, file: &Bytes) -> Result<Contents> {
    let contents = if zip::looks_like(file) { from_zip(file) } else { from_stream(file) };
    contents.map_err(|error| error.at(path))
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}

/// The zip format, also of TorchScript: `NAME/data.pkl` is the pickle, `NAME/data/0` and so on are the storages.
fn from_zip(file: &Bytes) -> Result<Contents> {
    // The compressed code of a TorchScript archive is not needed.
    let entries = zip::entries(file, |name| !name.contains("/code/"))?;
    let folder =
        entries.keys().filter_map(|name| name.strip_suffix("data.pkl")).min_by_key(|name| name.len());
    let folder = folder.ok_or_else(|| bad("zip file without the data.pkl of a PyTorch checkpoint"))?;
    if entries.get(&format!("{folder}byteorder")).is_some_and(|order| order.starts_with(b"big")) {
        return Err(Error::unsupported("a big-endian PyTorch checkpoint"));
    }
    let pickle = &entries[&format!("{folder}data.pkl")];
    let objects = pickle::read(&mut Cursor::new(pickle))?;
    contents(&objects, file.len(), |key| entries.get(&format!("{folder}data/{key}")).cloned())
}

/// The legacy format: five pickles (magic number, protocol, system info, objects, storage keys), then the storages.
/// Other pickles have no storages and are parsed for a specific error.
fn from_stream(file: &Bytes) -> Result<Contents> {
    let mut cursor = Cursor::new(file);
    if !file.starts_with(&MAGIC) {
        let objects = pickle::read(&mut cursor)?;
        return contents(&objects, file.len(), |_| None);
    }
    cursor.take(MAGIC.len());
    let protocol = pickle::read(&mut cursor)?;
    if protocol.int(protocol.root) != Some(1001) {
        return Err(bad("not protocol 1001 of the legacy PyTorch format"));
    }
    let system = pickle::read(&mut cursor)?;
    if let Object::Dict(items) = system.get(system.root) {
        let order = items.iter().find(|(key, _)| system.text(*key) == Some("little_endian"));
        if order.is_some_and(|(_, value)| matches!(system.get(*value), Object::Bool(false))) {
            return Err(Error::unsupported("a big-endian PyTorch checkpoint"));
        }
    }
    let objects = pickle::read(&mut cursor)?;
    let keys = pickle::read(&mut cursor)?;

    // The storages are consecutive; their element sizes are in the objects.
    let mut widths = HashMap::new();
    for object in objects.iter() {
        if let Object::Persistent(description) = object
            && let Ok(storage) = described(&objects, *description)
        {
            widths.insert(storage.key, storage.storage.unit_bytes());
        }
    }
    let mut storages = HashMap::new();
    for key in keys.sequence(keys.root).ok_or_else(|| bad("the storage keys are not a list"))? {
        let key = keys.text(*key).ok_or_else(|| bad("a storage key is not a string"))?;
        let bytes = cursor
            .u64()
            .and_then(|count| usize::try_from(count).ok()?.checked_mul(*widths.get(key)?))
            .and_then(|len| {
                let start = cursor.at();
                cursor.take(len)?;
                file.slice(start..start + len)
            })
            .ok_or_else(|| bad(format!("storage {key} does not fit in the file")))?;
        storages.insert(key, bytes);
    }
    contents(&objects, file.len(), |key| storages.get(key).cloned())
}

/// The tensors and metadata of `objects`; `storage` returns the bytes of a storage key.
fn contents<'a>(
    objects: &Objects<'a>,
    file_len: usize,
    storage: impl Fn(&str) -> Option<Bytes>,
) -> Result<Contents> {
    let mut walk = Walk {
        objects,
        tensors: Vec::new(),
        metadata: Metadata::new(),
        visits: 8 * objects.len() + 1000,
        budget: file_len.saturating_mul(4).saturating_add(1 << 20),
        storages: 0,
        unknown: 0,
    };
    walk.visit(objects.root, &mut String::new(), 0)?;
    let Walk { mut tensors, metadata, .. } = walk;
    if tensors.is_empty() {
        return Err(
            bad("no tensors in the file").hint("expected a state dict, or an object that contains one")
        );
    }
    unwrap(objects, &mut tensors);

    // Views may overlap, so the size of copies is limited.
    let mut converter = Converter { storage, left: file_len.saturating_mul(2) + (1 << 20) };
    let mut contents = Contents { metadata, ..Contents::default() };
    for (name, tensor) in tensors {
        let stored = converter.convert(&tensor).map_err(|e| e.context(format!("tensor {name}")))?;
        if contents.tensors.insert(name.clone(), stored).is_some() {
            return Err(bad(format!("duplicate tensor {name}")));
        }
    }
    Ok(contents)
}

/// Removes wrapper keys of the state dict if all other tensors belong to training.
fn unwrap(objects: &Objects, tensors: &mut Vec<(String, View)>) {
    let mut level = objects.root;
    'deeper: while let Some(items) = items(objects, level) {
        for wrapper in WRAPPERS {
            let inner = items.iter().find(|(key, _)| objects.text(*key) == Some(wrapper));
            let Some((_, inner)) = inner.filter(|(_, value)| self::items(objects, *value).is_some()) else {
                continue;
            };
            let prefix = format!("{wrapper}.");
            let is_training = |name: &str| TRAINING.contains(&name.split('.').next().unwrap_or(name));
            let is_inside = |name: &str| name.starts_with(&prefix);
            let holds_all = tensors.iter().all(|(name, _)| is_inside(name) || is_training(name));
            if holds_all && tensors.iter().any(|(name, _)| is_inside(name)) {
                tensors.retain(|(name, _)| is_inside(name));
                tensors.iter_mut().for_each(|(name, _)| drop(name.drain(..prefix.len())));
                level = *inner;
                continue 'deeper;
            }
        }
        return;
    }
}

/// The items of a dict or of a dict subclass.
fn items<'o>(objects: &'o Objects, id: Id) -> Option<&'o [(Id, Id)]> {
    match objects.get(id) {
        Object::Dict(items) => Some(items),
        Object::Call(call) if is_dict(objects, call) => Some(&call.items),
        _ => None,
    }
}

fn is_dict(objects: &Objects, call: &Call) -> bool {
    let dicts = ["OrderedDict", "defaultdict", "Counter"];
    objects
        .global(call.function)
        .is_some_and(|(module, name)| module == "collections" && dicts.contains(&name))
}

/// A traversal of all objects for tensors and metadata.
struct Walk<'o, 'a> {
    objects: &'o Objects<'a>,
    tensors: Vec<(String, View<'a>)>,
    metadata: Metadata,
    /// Number of objects that may still be visited, because references may be cyclic.
    visits: usize,
    /// Number of bytes of names and values that may still be kept, because a string may be referenced many times.
    budget: usize,
    /// Number of storages visited outside of tensors.
    storages: usize,
    /// Number of enclosing calls of unknown functions.
    unknown: usize,
}

impl<'a> Walk<'_, 'a> {
    /// Visits the object `id` at the dotted `path`.
    fn visit(&mut self, id: Id, path: &mut String, depth: usize) -> Result<()> {
        let Some(visits) =
            self.visits.checked_sub(1).filter(|_| depth <= MAX_DEPTH && path.len() <= MAX_NAME)
        else {
            return Err(bad(format!("objects nested too deeply, at {path:.60}…")));
        };
        self.visits = visits;
        let objects = self.objects;
        match objects.get(id) {
            Object::Bool(v) => self.note(path, 0, || Value::Bool(*v))?,
            Object::Int(v) => self.note(path, 0, || Value::I64(*v))?,
            Object::Float(v) => self.note(path, 0, || Value::F64(*v))?,
            Object::Text(v) => self.note(path, v.len(), || Value::Text((*v).to_owned()))?,
            Object::None | Object::Long | Object::Bytes | Object::Set(_) | Object::Global(_) => {}
            // A storage outside of a tensor has no shape; it is relevant only as an argument of an unknown function.
            Object::Persistent(_) => self.storages += 1,
            Object::Tuple(parts) | Object::List(parts) if is_plain(objects, parts) => {
                let len = |id: &Id| 24 + objects.text(*id).map_or(0, str::len);
                self.note(path, parts.iter().map(len).sum(), || plain_list(objects, parts))?;
            }
            Object::Tuple(parts) | Object::List(parts) => self.visit_sequence(parts, path, depth)?,
            Object::Dict(items) => self.visit_items(items, path, depth)?,
            Object::Call(call) => self.visit_call(call, path, depth)?,
        }
        Ok(())
    }

    /// Adds a value of about `len` bytes to the metadata.
    fn note(&mut self, path: &str, len: usize, value: impl FnOnce() -> Value) -> Result<()> {
        if !path.is_empty() && self.unknown == 0 {
            self.spend(path.len() + len)?;
            self.metadata.insert(path.to_owned(), value());
        }
        Ok(())
    }

    fn spend(&mut self, len: usize) -> Result<()> {
        let budget = self.budget.checked_sub(len);
        self.budget = budget.ok_or_else(|| bad("the names and values are much larger than the file"))?;
        Ok(())
    }

    fn visit_sequence(&mut self, parts: &[Id], path: &mut String, depth: usize) -> Result<()> {
        for (i, part) in parts.iter().enumerate() {
            self.visit_part(&i.to_string(), *part, path, depth)?;
        }
        Ok(())
    }

    fn visit_items(&mut self, items: &[(Id, Id)], path: &mut String, depth: usize) -> Result<()> {
        for (key, value) in items {
            match self.objects.get(*key) {
                Object::Text(key) => self.visit_part(key, *value, path, depth)?,
                Object::Int(key) => self.visit_part(&key.to_string(), *value, path, depth)?,
                _ => self.visit_part("?", *value, path, depth)?,
            }
        }
        Ok(())
    }

    fn visit_part(&mut self, key: &str, id: Id, path: &mut String, depth: usize) -> Result<()> {
        let len = path.len();
        if len > 0 {
            path.push('.');
        }
        path.push_str(key);
        self.visit(id, path, depth + 1)?;
        path.truncate(len);
        Ok(())
    }

    fn visit_call(&mut self, call: &Call, path: &mut String, depth: usize) -> Result<()> {
        let objects = self.objects;
        if is_dict(objects, call) {
            // Python 2 pickles the items of an ordered dict as a list of pairs.
            let first = objects.sequence(call.args).and_then(|args| args.first());
            for pair in first.and_then(|list| objects.sequence(*list)).unwrap_or_default() {
                if let Some(&[key, value]) = objects.sequence(*pair) {
                    self.visit_items(&[(key, value)], path, depth)?;
                }
            }
            return self.visit_items(&call.items, path, depth);
        }
        if let Some(view) = view(objects, call.function, call.args, 0)? {
            self.spend(path.len() + 16 * view.shape.len())?;
            self.tensors.push((path.clone(), view));
            return Ok(());
        }
        if call.is_instance {
            return self.visit_instance(call, path, depth);
        }
        // The result of an unknown function is needed only if its arguments contain tensors or if it is the root.
        let before = (self.tensors.len(), self.storages);
        self.unknown += 1;
        for id in [Some(call.args), call.state].into_iter().flatten() {
            self.visit_part("?", id, path, depth)?;
        }
        self.visit_sequence(&call.values, path, depth)?;
        self.visit_items(&call.items, path, depth)?;
        self.unknown -= 1;
        if (self.tensors.len(), self.storages) != before || depth == 0 {
            let (module, name) = objects.global(call.function).unwrap_or(("a computed", "function"));
            return Err(pickle::refusal(module, name));
        }
        Ok(())
    }

    /// An instance of a class. The attributes of a `torch.nn.Module` get the names of its state dict.
    fn visit_instance(&mut self, call: &Call, path: &mut String, depth: usize) -> Result<()> {
        let objects = self.objects;
        self.visit_items(&call.items, path, depth)?;
        self.visit_sequence(&call.values, path, depth)?;
        let Some(state) = call.state else { return Ok(()) };
        // `__dict__`, or a pair of `__dict__` and slots.
        let parts = match objects.get(state) {
            Object::Tuple(parts) => parts.as_slice(),
            _ => &[state],
        };
        for attributes in parts.iter().filter_map(|part| items(objects, *part)) {
            let attribute = |name: &str| {
                attributes.iter().find(|(key, _)| objects.text(*key) == Some(name)).map(|(_, value)| *value)
            };
            let unsaved =
                attribute("_non_persistent_buffers_set").map(|id| texts(objects, id)).unwrap_or_default();
            for (key, value) in attributes {
                match (objects.text(*key).unwrap_or("?"), items(objects, *value)) {
                    ("_parameters" | "_modules", Some(items)) => self.visit_items(items, path, depth)?,
                    ("_buffers", Some(items)) => {
                        let is_saved = |key| !unsaved.contains(&objects.text(key).unwrap_or_default());
                        let items: Vec<_> = items.iter().copied().filter(|(key, _)| is_saved(*key)).collect();
                        self.visit_items(&items, path, depth)?;
                    }
                    (key, _) => self.visit_part(key, *value, path, depth)?,
                }
            }
        }
        Ok(())
    }
}

/// The strings of a set, which older protocols pickle as a call with a list.
fn texts<'a>(objects: &Objects<'a>, id: Id) -> Vec<&'a str> {
    let parts: &[Id] = match objects.get(id) {
        Object::Set(parts) => parts,
        Object::Call(call) => {
            objects.sequence(call.args).and_then(|args| objects.sequence(*args.first()?)).unwrap_or_default()
        }
        _ => &[],
    };
    parts.iter().filter_map(|part| objects.text(*part)).collect()
}

/// Whether all elements are numbers or strings of one type.
fn is_plain(objects: &Objects, parts: &[Id]) -> bool {
    let kind = |id: &Id| match objects.get(*id) {
        Object::Int(_) => Some(0),
        Object::Float(_) => Some(1),
        Object::Text(_) => Some(2),
        _ => None,
    };
    let first = parts.first().and_then(kind);
    first.is_some() && parts.iter().all(|part| kind(part) == first)
}

/// The homogeneous list of elements for which [`is_plain`] holds.
fn plain_list(objects: &Objects, parts: &[Id]) -> Value {
    let float = |id: &Id| match objects.get(*id) {
        Object::Float(float) => Some(*float),
        _ => None,
    };
    let texts: Vec<_> = parts.iter().filter_map(|id| objects.text(*id).map(str::to_owned)).collect();
    let floats: Vec<_> = parts.iter().filter_map(float).collect();
    Value::List(if !texts.is_empty() {
        List::Text(texts)
    } else if !floats.is_empty() {
        List::F64(floats)
    } else {
        List::I64(parts.iter().filter_map(|id| objects.int(*id)).collect())
    })
}

/// A tensor of the pickle: a strided view of a storage.
struct View<'a> {
    storage: Described<'a>,
    /// The dtype, if it differs from that of the storage.
    dtype: Option<StorageType>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// A storage of the pickle.
struct Described<'a> {
    key: &'a str,
    storage: StorageType,
    /// Number of elements.
    len: usize,
    /// Offset in the bytes of its key, in elements.
    offset: usize,
}

/// The tensor returned by `function` with `args`, if it is a tensor constructor of PyTorch.
fn view<'a>(objects: &Objects<'a>, function: Id, args: Id, depth: usize) -> Result<Option<View<'a>>> {
    let Some((module, name)) = objects.global(function) else { return Ok(None) };
    let wrong = || bad(format!("invalid arguments of `{name}`"));
    let arg = |i: usize| objects.sequence(args).and_then(|args| args.get(i).copied()).ok_or_else(wrong);
    let inner = |id: Id| match objects.get(id) {
        Object::Call(call) if depth < 4 => view(objects, call.function, call.args, depth + 1),
        _ => Err(wrong()),
    };
    match (module, name) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
            let Object::Persistent(description) = objects.get(arg(0)?) else { return Err(wrong()) };
            let whole = |id: Id| usize::try_from(objects.int(id)?).ok();
            let axes = |id: Id| sizes(objects, id)?.iter().map(|id| whole(*id)).collect::<Option<Vec<_>>>();
            let view = View {
                storage: described(objects, *description)?,
                dtype: if name.ends_with("v3") { Some(dtype(objects, arg(6)?)?) } else { None },
                offset: whole(arg(1)?).ok_or_else(wrong)?,
                shape: axes(arg(2)?).ok_or_else(wrong)?,
                strides: axes(arg(3)?).ok_or_else(wrong)?,
            };
            if view.shape.len() == view.strides.len() { Ok(Some(view)) } else { Err(wrong()) }
        }
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => inner(arg(0)?),
        ("torch.nn.parameter", "Parameter" | "Buffer") => inner(arg(0)?),
        ("torch._tensor", "_rebuild_from_type_v2") if depth < 4 => view(objects, arg(0)?, arg(2)?, depth + 1),
        _ => Ok(None),
    }
}

/// The elements of a tuple or of a `torch.Size`.
fn sizes<'o>(objects: &'o Objects, id: Id) -> Option<&'o [Id]> {
    match objects.get(id) {
        Object::Call(call) if objects.global(call.function) == Some(("torch", "Size")) => {
            objects.sequence(*objects.sequence(call.args)?.first()?)
        }
        _ => objects.sequence(id),
    }
}

/// Parses the persistent id of a storage: `("storage", type, key, device, length)`, with a sixth element if it is a
/// view of another storage.
fn described<'a>(objects: &Objects<'a>, description: Id) -> Result<Described<'a>> {
    let wrong = || bad("invalid persistent id of a storage");
    let parts = objects.sequence(description).ok_or_else(wrong)?;
    let [kind, class, key, _device, len, rest @ ..] = parts else { return Err(wrong()) };
    let (module, class) = objects.global(*class).ok_or_else(wrong)?;
    if objects.text(*kind) != Some("storage") || module.split('.').next() != Some("torch") {
        return Err(wrong());
    }
    let storage = match class {
        "DoubleStorage" => StorageType::F64,
        "FloatStorage" => StorageType::F32,
        "HalfStorage" => StorageType::F16,
        "BFloat16Storage" => StorageType::BF16,
        "ComplexFloatStorage" => StorageType::C64,
        "LongStorage" => StorageType::I64,
        "IntStorage" => StorageType::I32,
        "ShortStorage" => StorageType::I16,
        "CharStorage" => StorageType::I8,
        "ByteStorage" | "UntypedStorage" => StorageType::U8,
        "BoolStorage" => StorageType::Bool,
        _ => return Err(Error::unsupported(format!("storage type {module}.{class}"))),
    };
    let whole = |id: Id| objects.int(id).and_then(|int| usize::try_from(int).ok()).ok_or_else(wrong);
    let mut described =
        Described { key: objects.text(*key).ok_or_else(wrong)?, storage, len: whole(*len)?, offset: 0 };
    if let [part, ..] = rest
        && let Some(&[_, offset, len]) = objects.sequence(*part)
    {
        described.offset = whole(offset)?;
        described.len = whole(len)?;
    }
    Ok(described)
}

/// The element type of a `torch.dtype`.
fn dtype(objects: &Objects, id: Id) -> Result<StorageType> {
    let name = match objects.global(id) {
        Some(("torch", name)) => name,
        _ => return Err(bad("a dtype is not a torch.dtype")),
    };
    match name {
        "float8_e4m3fn" => Ok(StorageType::F8E4M3),
        "float8_e5m2" => Ok(StorageType::F8E5M2),
        name => StorageType::of_dtype(name).ok_or_else(|| Error::unsupported(format!("dtype torch.{name}"))),
    }
}

/// Converts views to tensors; only views that are not contiguous are copied.
struct Converter<F> {
    storage: F,
    /// Number of bytes that may still be copied.
    left: usize,
}

impl<F: Fn(&str) -> Option<Bytes>> Converter<F> {
    fn convert(&mut self, view: &View) -> Result<StoredTensor> {
        let View { storage: from, offset, shape, strides, .. } = view;
        let storage = view.dtype.unwrap_or(from.storage);
        let width = storage.unit_bytes();
        let bytes = self.bytes(from)?;

        let outside = || {
            let len = bytes.len() / width;
            bad(format!(
                "shape {shape:?} with strides {strides:?} and offset {offset} exceeds its storage of {len} elements"
            ))
        };
        let len = storage.byte_len(shape).ok_or_else(outside)?;
        if len == 0 {
            return Ok(StoredTensor { storage, shape: shape.clone(), bytes: Bytes::from_vec(Vec::new()) });
        }
        // One past the last element.
        let end = shape.iter().zip(strides).try_fold(
            offset.checked_add(1).ok_or_else(outside)?,
            |end, (n, stride)| {
                (n - 1).checked_mul(*stride).and_then(|step| end.checked_add(step)).ok_or_else(outside)
            },
        )?;
        if end > bytes.len() / width {
            return Err(outside());
        }
        let bytes = if is_row_major(shape, strides) {
            bytes.slice(offset * width..offset * width + len).ok_or_else(outside)?
        } else {
            self.spend(len)?;
            Bytes::filled(len, |out| gather(out, &bytes[offset * width..], shape, strides, width))
        };
        Ok(StoredTensor { storage, shape: shape.clone(), bytes })
    }

    /// The bytes of a storage in the file, with a check of their number.
    fn bytes(&self, from: &Described) -> Result<Bytes> {
        let Described { key, storage, len, offset } = from;
        let bytes = (self.storage)(key).ok_or_else(|| bad(format!("missing storage {key}")))?;
        let width = storage.unit_bytes();
        offset
            .checked_add(*len)
            .and_then(|end| bytes.slice(offset.checked_mul(width)?..end.checked_mul(width)?))
            .ok_or_else(|| {
                bad(format!(
                    "storage {key} has {len} elements of {storage} from offset {offset}, but the file has {} bytes",
                    bytes.len()
                ))
            })
    }

    fn spend(&mut self, len: usize) -> Result<()> {
        let left = self.left.checked_sub(len);
        self.left = left.ok_or_else(|| bad("the views of the tensors are much larger than the file"))?;
        Ok(())
    }
}

/// Whether a view is contiguous in row-major order.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    for (&n, &stride) in shape.iter().zip(strides).rev() {
        if n != 1 && stride != expected {
            return false;
        }
        expected *= n;
    }
    true
}

/// Copies the elements of a view, `width` bytes each, to `out` in row-major order.
fn gather(out: &mut [u8], from: &[u8], shape: &[usize], strides: &[usize], width: usize) {
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    for element in out.chunks_exact_mut(width) {
        element.copy_from_slice(&from[at * width..(at + 1) * width]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at = at.wrapping_add(strides[axis]);
            if index[axis] < shape[axis] {
                break;
            }
            at = at.wrapping_sub(strides[axis].wrapping_mul(shape[axis]));
            index[axis] = 0;
        }
    }
}
