//! Rows as columns: the bytes of arrays that the caller reads as they are.

/// One entry a record. `keys`: i32, negative where the caller decides. Integers: i64. Numbers: f64, NaN where absent.
/// `texts`: xxh3 (u64), 0 where absent; `spans`: where each begins and ends in its record (u32 each). `marks`: bits.
pub struct Columns {
    pub keys: Vec<u8>,
    pub integers: Vec<Vec<u8>>,
    pub numbers: Vec<Vec<u8>>,
    pub texts: Vec<Vec<u8>>,
    pub spans: Vec<Vec<u8>>,
    pub marks: Vec<u8>,
}

/// The key of a record that is left to the caller.
pub const LEFT: i32 = -1;

fn filled<const N: usize>(rows: usize, with: [u8; N]) -> Vec<u8> {
    with.iter().copied().cycle().take(rows * N).collect()
}

fn set<const N: usize>(column: &mut [u8], row: usize, bytes: [u8; N]) {
    column[row * N..(row + 1) * N].copy_from_slice(&bytes);
}

impl Columns {
    pub fn new(rows: usize, integers: usize, numbers: usize, texts: usize) -> Self {
        Self {
            keys: filled(rows, LEFT.to_ne_bytes()),
            integers: vec![vec![0; rows * 8]; integers],
            numbers: vec![filled(rows, f64::NAN.to_ne_bytes()); numbers],
            texts: vec![vec![0; rows * 8]; texts],
            spans: vec![vec![0; rows * 8]; texts],
            marks: vec![0; rows],
        }
    }

    pub fn set_key(&mut self, row: usize, key: i32) {
        set(&mut self.keys, row, key.to_ne_bytes());
    }

    pub fn set_integer(&mut self, column: usize, row: usize, value: i64) {
        set(&mut self.integers[column], row, value.to_ne_bytes());
    }

    pub fn set_number(&mut self, column: usize, row: usize, value: f64) {
        set(&mut self.numbers[column], row, value.to_ne_bytes());
    }

    pub fn set_text(&mut self, column: usize, row: usize, hash: u64, (start, end): (usize, usize)) {
        set(&mut self.texts[column], row, hash.to_ne_bytes());
        set(&mut self.spans[column], 2 * row, (start as u32).to_ne_bytes());
        set(&mut self.spans[column], 2 * row + 1, (end as u32).to_ne_bytes());
    }

    pub fn mark(&mut self, row: usize, bits: u8) {
        self.marks[row] |= bits;
    }
}
