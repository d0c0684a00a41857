//! Keys by their bytes, as small numbers in the order in which they came.

use std::collections::hash_map::RandomState;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Hashes with a seed of this process: whoever writes records cannot know which ones collide.
struct Seeded(u64);

struct Hash(u64);

impl BuildHasher for Seeded {
    type Hasher = Hash;

    fn build_hasher(&self) -> Hash {
        Hash(self.0)
    }
}

impl Hasher for Hash {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    // A slice's length comes first; it is in the hash of the bytes already.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The keys met so far. `bytes`: what they take.
pub struct Keys {
    numbers: HashMap<Box<[u8]>, i32, Seeded>,
    bytes: usize,
}

impl Default for Keys {
    fn default() -> Self {
        let seed = RandomState::new().build_hasher().finish();
        Self { numbers: HashMap::with_hasher(Seeded(seed)), bytes: 0 }
    }
}

impl Keys {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn clear(&mut self) {
        self.numbers.clear();
        self.bytes = 0;
    }

    /// The number of a key, a new one if it was not met before; None if there are no more.
    pub fn intern(&mut self, key: &[u8]) -> Option<i32> {
        if let Some(&number) = self.numbers.get(key) {
            return Some(number);
        }
        let number = i32::try_from(self.numbers.len()).ok()?;
        self.numbers.insert(key.into(), number);
        self.bytes += key.len();
        Some(number)
    }
}
