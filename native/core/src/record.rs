//! One event's bytes to the values of its columns, if it is plainly well-formed.
//!
//! Nothing here says what an event may hold: the fields and their limits come from the caller. Whatever is unusual is
//! left to the caller, which then decides about that record alone: an escape, a key that stands twice, a number that is
//! not a plain decimal, a value of another type, a field that nests. Fields that are part of a key are not looked into
//! at all: their bytes together are told apart, and the caller decides once what they mean.

use crate::columns::Columns;
use crate::keys::Keys;
use xxhash_rust::xxh3::xxh3_64;

/// What a field's value may be; limits include their ends.
#[derive(Clone, Debug)]
pub enum Kind {
    Integer {
        least: i64,
        most: i64,
    },
    Number {
        least: f64,
        most: f64,
    },
    /// In bytes, of which there are at least as many as characters.
    Text {
        least: usize,
        most: usize,
    },
    Truth,
    /// Nothing that is read here.
    Other,
}

/// What becomes of a field's value; a number is the column that it goes into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    Key(usize),
    Integer(usize),
    Number(usize),
    Text(usize),
    Checked,
}

/// A field that is known by name. `marks`: bits that its presence sets for the row.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: Vec<u8>,
    pub role: Role,
    pub kind: Kind,
    pub nullable: bool,
    pub required: bool,
    pub marks: u8,
}

/// The fields of a record, and in which order they came last.
#[derive(Debug)]
pub struct Layout {
    fields: Vec<Field>,
    required: u64,
    longest: usize,
    order: Vec<usize>,
    spans: Vec<Option<(usize, usize)>>,
    key: Vec<u8>,
    objects: Vec<Vec<u8>>,
    next_object: usize,
}

const UNKNOWN: usize = usize::MAX;
/// Objects that are remembered.
const OBJECTS: usize = 8;
/// Digits of a number: with these its value is below 2^64.
const DIGITS: usize = 19;
/// Digits of an integer.
const INTEGER_DIGITS: usize = 15;
/// Below this a mantissa is exact as a floating-point number, and up to 10^22 powers of ten are.
const EXACT: u64 = 1 << 53;
const POWERS: [f64; 20] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19];

impl Layout {
    /// `longest`: bytes of the largest record that is read here. At most 64 fields.
    pub fn new(fields: Vec<Field>, longest: usize) -> Option<Self> {
        if fields.len() > 64 {
            return None;
        }
        let required = fields.iter().enumerate().filter(|(_, f)| f.required).map(|(at, _)| 1u64 << at).sum();
        let keys = fields.iter().filter(|f| matches!(f.role, Role::Key(_))).count();
        Some(Self {
            fields,
            required,
            longest,
            order: Vec::new(),
            spans: vec![None; keys],
            key: Vec::new(),
            objects: Vec::new(),
            next_object: 0,
        })
    }

    /// Write one record into its row; None leaves it to the caller, with whatever was written.
    pub fn read(&mut self, value: &[u8], row: usize, columns: &mut Columns, keys: &mut Keys) -> Option<()> {
        if value.len() > self.longest || std::str::from_utf8(value).is_err() {
            return None;
        }
        self.spans.fill(None);
        let mut seen = 0u64;
        let mut at = expect(value, space(value, 0), b'{')?;
        let mut position = 0;
        loop {
            at = expect(value, space(value, at), b'"')?;
            let (field, end) = self.name(value, at, position)?;
            at = space(value, expect(value, space(value, end + 1), b':')?);
            at = if field == UNKNOWN {
                passed_over(value, at)?
            } else {
                if seen >> field & 1 == 1 {
                    return None;
                }
                seen |= 1 << field;
                self.value(field, value, at, row, columns)?
            };
            at = space(value, at);
            position += 1;
            match value.get(at)? {
                b',' => at += 1,
                b'}' => break,
                _ => return None,
            }
        }
        if space(value, at + 1) != value.len() || seen & self.required != self.required {
            return None;
        }
        self.key.clear();
        for span in &self.spans {
            let token = span.map(|(start, end)| &value[start..end]);
            self.key.extend_from_slice(&token.map_or(u32::MAX, |t| t.len() as u32).to_le_bytes());
            self.key.extend_from_slice(token.unwrap_or_default());
        }
        columns.set_key(row, keys.intern(&self.key)?);
        Some(())
    }

    /// Which field begins at `at`, behind its quote, and where its name ends. Writers keep to one order.
    fn name(&mut self, value: &[u8], at: usize, position: usize) -> Option<(usize, usize)> {
        if let Some(field) = self.order.get(position).and_then(|&field| self.fields.get(field)) {
            let end = at + field.name.len();
            if value.get(end) == Some(&b'"') && value[at..end] == field.name[..] {
                return Some((self.order[position], end));
            }
        }
        let end = plain_text(value, at)?;
        let name = &value[at..end];
        let found = self.fields.iter().position(|field| field.name == name).unwrap_or(UNKNOWN);
        if position < 64 {
            if self.order.len() <= position {
                self.order.resize(position + 1, UNKNOWN);
            }
            self.order[position] = found;
        }
        Some((found, end))
    }

    /// Read the value of a known field that begins at `at`; where it ends.
    fn value(&mut self, index: usize, value: &[u8], at: usize, row: usize, columns: &mut Columns) -> Option<usize> {
        let field = &self.fields[index];
        if let Role::Key(slot) = field.role {
            let end = if value.get(at) == Some(&b'{') { self.object(value, at)? } else { scalar(value, at)? };
            let field = &self.fields[index];
            self.spans[slot] = Some((at, end));
            if &value[at..end] != b"null" {
                columns.mark(row, field.marks);
            }
            return Some(end);
        }
        if value.get(at) == Some(&b'n') {
            return if field.nullable { literal(value, at, b"null") } else { None };
        }
        columns.mark(row, field.marks);
        match field.kind {
            Kind::Integer { least, most } => {
                let (number, end) = integer(value, at)?;
                if number < least || number > most {
                    return None;
                }
                if let Role::Integer(column) = field.role {
                    columns.set_integer(column, row, number);
                }
                Some(end)
            }
            Kind::Number { least, most } => {
                let (number, end) = number(value, at)?;
                if !(least..=most).contains(&number) {
                    return None;
                }
                if let Role::Number(column) = field.role {
                    columns.set_number(column, row, number);
                }
                Some(end)
            }
            Kind::Text { least, most } => {
                let start = expect(value, at, b'"')?;
                let end = plain_text(value, start)?;
                if end - start < least || end - start > most {
                    return None;
                }
                if let Role::Text(column) = field.role {
                    let hash = xxh3_64(&value[start..end]);
                    if hash == 0 {
                        return None;
                    }
                    columns.set_text(column, row, hash, (start, end));
                }
                Some(end + 1)
            }
            Kind::Truth => truth(value, at),
            Kind::Other => None,
        }
    }

    /// Where an object that is part of a key ends; most are among the few that came last, byte for byte.
    fn object(&mut self, value: &[u8], at: usize) -> Option<usize> {
        if let Some(known) = self.objects.iter().find(|known| value[at..].starts_with(known)) {
            return Some(at + known.len());
        }
        let end = flat_object(value, at)?;
        let met = value[at..end].to_vec();
        if self.objects.len() < OBJECTS {
            self.objects.push(met);
        } else {
            self.objects[self.next_object] = met;
            self.next_object = (self.next_object + 1) % OBJECTS;
        }
        Some(end)
    }
}

fn space(value: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\t' | b'\r') = value.get(at) {
        at += 1;
    }
    at
}

fn expect(value: &[u8], at: usize, byte: u8) -> Option<usize> {
    (*value.get(at)? == byte).then_some(at + 1)
}

fn literal(value: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    value[at..].starts_with(word).then_some(at + word.len())
}

fn truth(value: &[u8], at: usize) -> Option<usize> {
    literal(value, at, b"true").or_else(|| literal(value, at, b"false"))
}

/// Where the first quote, backslash or control character is, from `at` on.
fn stop(value: &[u8], mut at: usize) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    while let Some(eight) = value.get(at..at + 8) {
        let word = u64::from_le_bytes(eight.try_into().ok()?);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        // Only the lowest bit that is set is sure to be right: above it a borrow may have set others.
        let found = zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\'))) | control;
        if found != 0 {
            return Some(at + (found.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    let rest = value.get(at..)?;
    rest.iter().position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20).map(|found| at + found)
}

/// Where a text that begins at `at` has its closing quote, if it is written without escapes.
fn plain_text(value: &[u8], at: usize) -> Option<usize> {
    let end = stop(value, at)?;
    (value[end] == b'"').then_some(end)
}

/// The same for a text whose bytes are not looked into.
fn any_text(value: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at = stop(value, at)?;
        match value[at] {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Where an object of nothing but scalars ends, which is part of a key.
fn flat_object(value: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match *value.get(at)? {
            b'"' => at = any_text(value, at + 1)? + 1,
            b'}' => return Some(at + 1),
            b'{' | b'[' | b']' => return None,
            _ => at += 1,
        }
    }
}

/// Where a scalar ends that is part of a key.
fn scalar(value: &[u8], at: usize) -> Option<usize> {
    match *value.get(at)? {
        b'"' => Some(any_text(value, at + 1)? + 1),
        b'-' | b'0'..=b'9' => {
            let number = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
            Some(at + value[at..].iter().take_while(|byte| number(byte)).count())
        }
        b'n' => literal(value, at, b"null"),
        _ => truth(value, at),
    }
}

/// Where the value of a field that nobody asks for ends.
fn passed_over(value: &[u8], at: usize) -> Option<usize> {
    match *value.get(at)? {
        b'"' => Some(plain_text(value, at + 1)? + 1),
        b'0'..=b'9' => number(value, at).map(|(_, end)| end),
        b'n' => literal(value, at, b"null"),
        _ => truth(value, at),
    }
}

fn digits(value: &[u8], at: usize, mut mantissa: u64) -> (u64, usize) {
    let mut end = at;
    while let Some(byte @ b'0'..=b'9') = value.get(end) {
        mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
        end += 1;
    }
    (mantissa, end)
}

/// The digits before a fraction: no sign, and no zero before others.
fn whole(value: &[u8], at: usize) -> Option<(u64, usize)> {
    let (mantissa, end) = digits(value, at, 0);
    (end > at && (end == at + 1 || value[at] != b'0')).then_some((mantissa, end))
}

fn integer(value: &[u8], at: usize) -> Option<(i64, usize)> {
    let (mantissa, end) = whole(value, at)?;
    (end - at <= INTEGER_DIGITS).then_some((mantissa as i64, end))
}

/// A decimal without a sign: digits, perhaps a fraction, perhaps a short exponent; rounded to the nearest.
fn number(value: &[u8], at: usize) -> Option<(f64, usize)> {
    let (mut mantissa, mut end) = whole(value, at)?;
    let (mut scale, mut count) = (0, end - at);
    if value.get(end) == Some(&b'.') {
        let (both, past) = digits(value, end + 1, mantissa);
        scale = past - end - 1;
        if scale == 0 {
            return None;
        }
        (mantissa, end, count) = (both, past, count + scale);
    }
    if count > DIGITS {
        return None;
    }
    if let Some(b'e' | b'E') = value.get(end) {
        let start = end + 1 + usize::from(matches!(value.get(end + 1), Some(b'+' | b'-')));
        let (_, past) = digits(value, start, 0);
        if past == start || past - start > 2 {
            return None;
        }
        return Some((std::str::from_utf8(&value[at..past]).ok()?.parse().ok()?, past));
    }
    if mantissa < EXACT {
        return Some((mantissa as f64 / POWERS[scale], end));
    }
    Some((std::str::from_utf8(&value[at..end]).ok()?.parse().ok()?, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: usize = 1000;

    fn field(name: &str, role: Role, kind: Kind) -> Field {
        Field { name: name.into(), role, kind, nullable: name != "ts", required: name == "ts", marks: 0 }
    }

    fn layout() -> Layout {
        let fields = vec![
            field("ts", Role::Integer(0), Kind::Integer { least: 10, most: 99 }),
            field("id", Role::Text(0), Kind::Text { least: 1, most: 5 }),
            field("cost", Role::Number(0), Kind::Number { least: 0.0, most: 1e9 }),
            field("flag", Role::Key(0), Kind::Other),
            field("versions", Role::Key(1), Kind::Other),
            field("hit", Role::Checked, Kind::Truth),
            field("tools", Role::Checked, Kind::Other),
        ];
        Layout::new(fields, LONGEST).unwrap()
    }

    fn read(values: &[&str]) -> (Vec<Option<()>>, Columns, Keys) {
        let (mut layout, mut columns, mut keys) = (layout(), Columns::new(values.len(), 1, 1, 1), Keys::new());
        let found = values
            .iter()
            .enumerate()
            .map(|(row, value)| layout.read(value.as_bytes(), row, &mut columns, &mut keys))
            .collect();
        (found, columns, keys)
    }

    fn is_read(value: &str) -> bool {
        read(&[value]).0[0].is_some()
    }

    fn cost(value: &str) -> Option<f64> {
        let (found, columns, _) = read(&[&format!("{{\"ts\":10,\"cost\":{value}}}")]);
        found[0].map(|()| f64::from_ne_bytes(columns.numbers[0][..8].try_into().unwrap()))
    }

    #[test]
    fn plain_records_are_read() {
        let long = format!("{{\"ts\":10,\"x\":\"{}\"}}", "a".repeat(LONGEST - 16));
        for value in [
            r#"{"ts":10}"#,
            "  { \"ts\" :\t10 ,\r\n \"id\" : null } ",
            r#"{"ts":99,"id":"abcde","hit":true,"tools":null,"unknown":1.5,"more":"text","none":null,"no":false}"#,
            r#"{"flag":"a\"b\u00e9","versions":{"A":"1","B":"}"},"ts":10}"#,
            &long,
        ] {
            assert!(is_read(value), "{value}");
        }
    }

    #[test]
    fn whatever_is_unusual_is_left() {
        let long = format!("{{\"ts\":10,\"x\":\"{}\"}}", "a".repeat(LONGEST));
        for value in [
            "",
            " ",
            "{",
            "{}",
            "[]",
            "null",
            r#"{"ts":10"#,
            r#"{"ts":10}}"#,
            r#"{"ts":10},"#,
            r#"{"ts":10,}"#,
            r#"{,"ts":10}"#,
            r#"{"ts"}"#,
            r#"{"ts":}"#,
            r#"{"ts":10 "id":"a"}"#,
            r#"{ts:10}"#,
            // A key that stands twice, one with an escape, one that is not there.
            r#"{"ts":10,"ts":10}"#,
            r#"{"ts":10,"i\u0064":"a"}"#,
            r#"{"id":"a"}"#,
            r#"{"ts":null}"#,
            // Values of another kind, and out of their range.
            r#"{"ts":"10"}"#,
            r#"{"ts":10.0}"#,
            r#"{"ts":1e1}"#,
            r#"{"ts":010}"#,
            r#"{"ts":-10}"#,
            r#"{"ts":+10}"#,
            r#"{"ts":9}"#,
            r#"{"ts":100}"#,
            r#"{"ts":10,"id":""}"#,
            r#"{"ts":10,"id":"abcdef"}"#,
            r#"{"ts":10,"id":7}"#,
            r#"{"ts":10,"hit":1}"#,
            r#"{"ts":10,"hit":tru}"#,
            r#"{"ts":10,"tools":[]}"#,
            // Texts that are not as they stand.
            r#"{"ts":10,"id":"a\n"}"#,
            "{\"ts\":10,\"id\":\"a\n\"}",
            r#"{"ts":10,"x":"\\"}"#,
            r#"{"ts":10,"id":"a}"#,
            // Fields that nest, and numbers that are not plain.
            r#"{"ts":10,"x":{}}"#,
            r#"{"ts":10,"x":[1]}"#,
            r#"{"ts":10,"x":-1}"#,
            r#"{"ts":10,"x":01}"#,
            r#"{"ts":10,"versions":{"A":{}}}"#,
            r#"{"ts":10,"versions":["A"]}"#,
            &long,
        ] {
            assert!(!is_read(value), "{value}");
        }
        let mut columns = Columns::new(1, 1, 1, 1);
        assert!(layout().read(b"{\"ts\":10,\"x\":\"\xff\"}", 0, &mut columns, &mut Keys::new()).is_none());
    }

    #[test]
    fn numbers_are_the_nearest_ones() {
        for (text, number) in [
            ("0", 0.0),
            ("7", 7.0),
            ("0.1", 0.1),
            ("0.30000000000000004", 0.30000000000000004),
            ("1e9", 1e9),
            ("5e-05", 5e-5),
            ("1E+2", 100.0),
            ("9007199.254740993", 9007199.254740993),
            ("123456.789", 123456.789),
            ("0.123456789012345678", 0.12345678901234568),
        ] {
            assert_eq!(cost(text), Some(number), "{text}");
        }
        for text in [
            "1.",
            ".5",
            "1e",
            "1e+",
            "1e100",
            "00",
            "1.5.5",
            "0x1",
            "-0",
            "-1",
            "1e10",
            "NaN",
            "12345678901234567890",
            "0.1234567890123456789",
        ] {
            assert_eq!(cost(text), None, "{text}");
        }
    }

    #[test]
    fn keys_are_the_bytes_of_their_fields_whatever_their_order() {
        let (_, columns, keys) = read(&[
            r#"{"ts":10,"flag":"f","versions":{"A":"1"}}"#,
            r#"{"versions":{"A":"1"}, "id":"a", "flag": "f","ts":11}"#,
            r#"{"ts":10,"flag":"f","versions":{"A":"2"}}"#,
            r#"{"ts":10,"flag":"f"}"#,
            r#"{"ts":10,"flag":"f","versions":null}"#,
            r#"{"ts":1}"#,
        ]);
        let found: Vec<i32> = columns.keys.chunks(4).map(|four| i32::from_ne_bytes(four.try_into().unwrap())).collect();
        assert_eq!(found, [0, 0, 1, 2, 3, -1]);
        assert_eq!(keys.len(), 4);
    }

    #[test]
    fn a_text_ends_at_its_quote_wherever_it_stands() {
        for length in 0..40 {
            for stop_at in 0..length {
                for (byte, plain) in [(b'"', true), (b'\\', false), (0x1f, false)] {
                    let mut text = vec![b'a'; length];
                    text[stop_at] = byte;
                    assert_eq!(plain_text(&text, 0), plain.then_some(stop_at));
                }
            }
            assert_eq!(plain_text(&vec![0xe9; length], 0), None);
        }
    }
}
