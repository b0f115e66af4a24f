//! Metadata: keys and values, kept exactly as a file has them.

use super::limits::{MAX_ARRAY_DEPTH, MAX_STRING};
use crate::cursor::Cursor;
use crate::{Bytes, Fault};

/// One row for each type of number: its id in a file, its name here, what it is in Rust.
macro_rules! values {
    ($($id:literal $name:ident $number:ty;)*) => {
        /// The type of a value.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "named after what they are")]
        #[repr(u32)]
        pub enum ValueType {
            $($name = $id,)*
            Bool = 7,
            String = 8,
            Array = 9,
        }

        /// A value of metadata.
        #[derive(Clone, Debug)]
        #[expect(missing_docs, reason = "named after what they are")]
        pub enum Value {
            $($name($number),)*
            Bool(bool),
            /// Usually UTF-8, but tokens need not be.
            String(Vec<u8>),
            Array(Array),
        }

        impl ValueType {
            /// By its id in a file.
            pub const fn from_id(id: u32) -> Option<ValueType> {
                match id {
                    $($id => Some(ValueType::$name),)*
                    7 => Some(ValueType::Bool),
                    8 => Some(ValueType::String),
                    9 => Some(ValueType::Array),
                    _ => None,
                }
            }

            /// Bytes of a value, where all values of the type have as many.
            const fn size(self) -> Option<u64> {
                match self {
                    $(ValueType::$name => Some(size_of::<$number>() as u64),)*
                    ValueType::Bool => Some(1),
                    ValueType::String | ValueType::Array => None,
                }
            }
        }

        impl Value {
            /// Its type.
            pub const fn ty(&self) -> ValueType {
                match self {
                    $(Value::$name(_) => ValueType::$name,)*
                    Value::Bool(_) => ValueType::Bool,
                    Value::String(_) => ValueType::String,
                    Value::Array(_) => ValueType::Array,
                }
            }

            /// Reads a value; `key` is for messages.
            pub(super) fn read(
                cursor: &mut Cursor<'_>,
                ty: ValueType,
                key: &str,
            ) -> Result<Value, Fault> {
                Ok(match ty {
                    $(ValueType::$name => {
                        let bytes = cursor.take(size_of::<$number>() as u64)?;
                        Value::$name(<$number>::from_le_bytes(bytes.try_into().expect("as many")))
                    })*
                    ValueType::Bool => {
                        let at = cursor.at() as u64;
                        let byte = cursor.take(1)?[0];
                        check_bools(&[byte], at, key)?;
                        Value::Bool(byte == 1)
                    }
                    ValueType::String => {
                        Value::String(cursor.string("a string in the metadata", MAX_STRING)?.to_vec())
                    }
                    ValueType::Array => Value::Array(Array::read(cursor, key, 1)?),
                })
            }

            /// Its bytes in a file, without its type.
            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Value::$name(number) => out.extend(number.to_le_bytes()),)*
                    Value::Bool(value) => out.push(u8::from(*value)),
                    Value::String(string) => write_string(string, out),
                    Value::Array(array) => {
                        out.extend((array.ty as u32).to_le_bytes());
                        out.extend((array.len as u64).to_le_bytes());
                        out.extend(&*array.bytes);
                    }
                }
            }
        }

        $(impl From<$number> for Value {
            fn from(number: $number) -> Value {
                Value::$name(number)
            }
        })*
    };
}

values! {
    0 U8 u8;
    1 I8 i8;
    2 U16 u16;
    3 I16 i16;
    4 U32 u32;
    5 I32 i32;
    6 F32 f32;
    10 U64 u64;
    11 I64 i64;
    12 F64 f64;
}

/// The count of the bytes, then they.
pub(super) fn write_string(string: &[u8], out: &mut Vec<u8>) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string);
}

/// The specification calls a file with other bytes invalid.
fn check_bools(bytes: &[u8], at: u64, key: &str) -> Result<(), Fault> {
    match bytes.iter().position(|&byte| byte > 1) {
        None => Ok(()),
        Some(index) => {
            Err(Fault::Bool { key: key.to_owned(), at: at + index as u64, found: bytes[index] })
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::String(text.into())
    }
}

/// The same type and the same bytes: a NaN equals itself.
impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        let bytes = |value: &Value| {
            let mut bytes = Vec::new();
            value.write(&mut bytes);
            bytes
        };
        match (self, other) {
            (Value::Array(a), Value::Array(b)) => {
                (a.ty, a.len, &*a.bytes) == (b.ty, b.len, &*b.bytes)
            }
            (Value::String(a), Value::String(b)) => a == b,
            _ => self.ty() == other.ty() && bytes(self) == bytes(other),
        }
    }
}

impl Value {
    /// The text, where it is a string of UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(string) => std::str::from_utf8(string).ok(),
            _ => None,
        }
    }

    /// The number, where it is an integer of any type and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(number) => Some(number.into()),
            Value::U16(number) => Some(number.into()),
            Value::U32(number) => Some(number.into()),
            Value::U64(number) => Some(number),
            Value::I8(number) => number.try_into().ok(),
            Value::I16(number) => number.try_into().ok(),
            Value::I32(number) => number.try_into().ok(),
            Value::I64(number) => number.try_into().ok(),
            _ => None,
        }
    }

    /// The number, where it has a fraction; a double is rounded.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(number) => Some(number),
            Value::F64(number) => Some(number as f32),
            _ => None,
        }
    }
}

/// Values of one type, as bytes of the file: a vocabulary costs nothing until it is read.
#[derive(Clone, Debug)]
pub struct Array {
    ty: ValueType,
    len: usize,
    bytes: Bytes,
}

/// The values of an array have one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an array of {first:?} cannot hold a value of type {other:?}")]
pub struct MixedTypes {
    /// The type of the first value.
    pub first: ValueType,
    /// Another type.
    pub other: ValueType,
}

impl Array {
    /// An array of these values. An empty one is of strings.
    ///
    /// # Errors
    /// Where they are of different types.
    pub fn new(values: &[Value]) -> Result<Array, MixedTypes> {
        let ty = values.first().map_or(ValueType::String, Value::ty);
        let mut bytes = Vec::new();
        for value in values {
            if value.ty() != ty {
                return Err(MixedTypes { first: ty, other: value.ty() });
            }
            value.write(&mut bytes);
        }
        Ok(Array { ty, len: values.len(), bytes: bytes.into() })
    }

    /// Checks an array from end to end, and keeps where it lies.
    fn read(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array, Fault> {
        if depth > MAX_ARRAY_DEPTH {
            return Err(Fault::ArrayDepth { key: key.to_owned(), limit: MAX_ARRAY_DEPTH });
        }
        let ty = read_type(cursor, key)?;
        let len = cursor.u64()?;
        let start = cursor.at();
        match (ty, ty.size()) {
            (ty, Some(size)) => {
                // Saturated it is more than there is.
                let bytes = cursor.take(len.saturating_mul(size))?;
                if ty == ValueType::Bool {
                    check_bools(bytes, start as u64, key)?;
                }
            }
            // Each element takes some bytes, so a length that is a lie ends with the file.
            (ValueType::Array, None) => {
                for _ in 0..len {
                    Array::read(cursor, key, depth + 1)?;
                }
            }
            (_, None) => {
                for _ in 0..len {
                    cursor.string("a string in an array", MAX_STRING)?;
                }
            }
        }
        let len = usize::try_from(len).expect("no more than the bytes in memory");
        Ok(Array { ty, len, bytes: cursor.since(start) })
    }

    /// The type of its elements.
    pub fn ty(&self) -> ValueType {
        self.ty
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        // It was checked: an error can come only of a file that was changed meanwhile.
        let mut cursor = Cursor::new(&self.bytes, "an array");
        (0..self.len).map_while(move |_| Value::read(&mut cursor, self.ty, "").ok())
    }

    /// Its elements in order, where they are strings.
    pub fn strings(&self) -> Option<impl Iterator<Item = &[u8]>> {
        let mut cursor = Cursor::new(&self.bytes, "an array");
        let strings = (0..self.len).map_while(move |_| cursor.string("", MAX_STRING).ok());
        (self.ty == ValueType::String).then_some(strings)
    }
}

/// The id of a type.
pub(super) fn read_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, Fault> {
    let at = cursor.at() as u64;
    let id = cursor.u32()?;
    ValueType::from_id(id).ok_or_else(|| Fault::ValueType { key: key.to_owned(), at, id })
}

/// Keys and their values, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// No key twice.
    pub(super) entries: Vec<(String, Value)>,
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.iter().find(|(other, _)| *other == key).map(|(_, value)| value)
    }

    /// Sets the value of a key: in its place where the key is there, else at the end.
    pub fn insert(&mut self, key: &str, value: Value) {
        match self.entries.iter_mut().find(|(other, _)| other == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key.to_owned(), value)),
        }
    }

    /// Sets the value of a key to an array.
    ///
    /// # Errors
    /// Where the values are of different types; nothing is changed then.
    pub fn insert_array(&mut self, key: &str, values: &[Value]) -> Result<(), MixedTypes> {
        self.insert(key, Value::Array(Array::new(values)?));
        Ok(())
    }

    /// Takes a key and its value out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let index = self.entries.iter().position(|(other, _)| other == key)?;
        Some(self.entries.remove(index).1)
    }

    /// All keys and values, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The text of a key, where it has a string of UTF-8.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// The number of a key, where it has an integer of any type that is not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// The number of a key, where it has a single or a double.
    pub fn f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    /// The elements of a key, where it has an array.
    pub fn array(&self, key: &str) -> Option<Vec<Value>> {
        match self.get(key)? {
            Value::Array(array) => Some(array.iter().collect()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insert_replaces_in_place_and_appends() {
        let mut metadata = Metadata::default();
        metadata.insert("a", 1u32.into());
        metadata.insert("b", true.into());
        metadata.insert("a", "text".into());
        assert_eq!(metadata.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(metadata.str("a"), Some("text"));
        assert_eq!(metadata.remove("a"), Some("text".into()));
        assert_eq!(metadata.remove("a"), None);
        assert_eq!(metadata.iter().count(), 1);
    }

    #[test]
    fn integers_of_any_type_are_one() {
        let mut metadata = Metadata::default();
        let sevens: [Value; 8] = [
            7u8.into(),
            7i8.into(),
            7u16.into(),
            7i16.into(),
            7u32.into(),
            7i32.into(),
            7u64.into(),
            7i64.into(),
        ];
        for seven in sevens {
            metadata.insert("n", seven);
            assert_eq!((metadata.u64("n"), metadata.f32("n")), (Some(7), None));
        }
        metadata.insert("n", (-7i32).into());
        assert_eq!(metadata.u64("n"), None);
        metadata.insert("n", 0.5f64.into());
        assert_eq!((metadata.u64("n"), metadata.f32("n")), (None, Some(0.5)));
    }

    #[test]
    fn values_are_equal_by_their_bits() {
        assert_eq!(Value::F32(f32::NAN), Value::F32(f32::NAN));
        assert_ne!(Value::F32(0.0), Value::F32(-0.0));
        assert_ne!(Value::U32(1), Value::I32(1));
        let array = |values: &[Value]| Value::Array(Array::new(values).unwrap());
        assert_eq!(array(&["a".into()]), array(&["a".into()]));
        assert_ne!(array(&["a".into()]), array(&["b".into()]));
        assert_ne!(array(&[1u32.into()]), array(&[1i32.into()]));
    }

    #[test]
    fn an_array_has_one_type() {
        let mut metadata = Metadata::default();
        metadata.insert_array("list", &["a".into(), "b".into()]).unwrap();
        let error = metadata.insert_array("list", &["a".into(), 1u32.into()]).unwrap_err();
        assert_eq!(error, MixedTypes { first: ValueType::String, other: ValueType::U32 });
        assert_eq!(metadata.array("list"), Some(vec!["a".into(), "b".into()]));

        let nested = Array::new(&[
            Value::Array(Array::new(&[1.5f32.into()]).unwrap()),
            Value::Array(Array::new(&["x".into(), "y".into()]).unwrap()),
        ])
        .unwrap();
        let mut inner = nested.iter();
        assert!(nested.strings().is_none());
        assert!(matches!(inner.next(), Some(Value::Array(array)) if array.ty() == ValueType::F32));
        let Some(Value::Array(strings)) = inner.next() else { panic!("two arrays") };
        assert_eq!(strings.strings().unwrap().collect::<Vec<_>>(), [b"x", b"y"]);
        assert!(inner.next().is_none());
    }
}
