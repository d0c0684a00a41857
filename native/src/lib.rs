//! The native decoder as Python's module `tidegate_native`. What is not plain stays with the Python path, which says
//! what is right.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tidegate_columns::columns::Columns;
use tidegate_columns::keys::Keys;
use tidegate_columns::record::{Field, Kind, Layout, Role};

/// (name, role, kind, least, most, nullable, required, marks)
type Described = (String, String, String, Option<f64>, Option<f64>, bool, bool, u8);
/// Keys, integers, numbers, texts, their spans, marks.
type Found<'py> = (
    Bound<'py, PyByteArray>,
    Vec<Bound<'py, PyByteArray>>,
    Vec<Bound<'py, PyByteArray>>,
    Vec<Bound<'py, PyByteArray>>,
    Vec<Bound<'py, PyByteArray>>,
    Bound<'py, PyByteArray>,
);

struct State {
    layout: Layout,
    keys: Keys,
}

/// Reads runs of records; remembers the keys that it met.
#[pyclass(frozen)]
struct Scanner {
    state: Mutex<State>,
    integers: usize,
    numbers: usize,
    texts: usize,
}

impl Scanner {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in the middle of a record leaves nothing behind that the next one could stumble over.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Scanner {
    /// `fields`: (name, role, kind, least, most, nullable, required, marks); columns are in the order of their fields.
    /// `longest`: bytes of the largest record that is read here.
    #[new]
    fn new(fields: Vec<Described>, longest: usize) -> PyResult<Self> {
        let [mut keys, mut integers, mut numbers, mut texts] = [0; 4];
        let next = |count: &mut usize| {
            *count += 1;
            *count - 1
        };
        let mut known = Vec::with_capacity(fields.len());
        for (name, role, kind, least, most, nullable, required, marks) in fields {
            let refused = |what: &str| PyValueError::new_err(format!("{name}: no such {what}"));
            let role = match (role.as_str(), kind.as_str()) {
                ("key", _) => Role::Key(next(&mut keys)),
                ("column", "integer") => Role::Integer(next(&mut integers)),
                ("column", "number") => Role::Number(next(&mut numbers)),
                ("column", "text") => Role::Text(next(&mut texts)),
                ("checked", _) => Role::Checked,
                _ => return Err(refused("role")),
            };
            let kind = match kind.as_str() {
                "integer" => Kind::Integer {
                    least: least.map_or(i64::MIN, |v| v as i64),
                    most: most.map_or(i64::MAX, |v| v as i64),
                },
                "number" => {
                    Kind::Number { least: least.unwrap_or(f64::NEG_INFINITY), most: most.unwrap_or(f64::INFINITY) }
                }
                "text" => {
                    Kind::Text { least: least.map_or(0, |v| v as usize), most: most.map_or(usize::MAX, |v| v as usize) }
                }
                "truth" => Kind::Truth,
                "other" => Kind::Other,
                _ => return Err(refused("kind")),
            };
            known.push(Field { name: name.into_bytes(), role, kind, nullable, required, marks });
        }
        let layout = Layout::new(known, longest.min(u32::MAX as usize))
            .ok_or_else(|| PyValueError::new_err("more than 64 fields"))?;
        Ok(Self { state: Mutex::new(State { layout, keys: Keys::new() }), integers, numbers, texts })
    }

    /// The columns of a run of values; a key is negative where Python decides.
    fn scan<'py>(&self, py: Python<'py>, values: Vec<Bound<'py, PyAny>>) -> PyResult<Found<'py>> {
        let held: Vec<Option<Bound<'py, PyBytes>>> =
            values.into_iter().map(|value| value.cast_into::<PyBytes>().ok()).collect();
        let slices: Vec<Option<&[u8]>> = held.iter().map(|value| value.as_ref().map(|v| v.as_bytes())).collect();
        let columns = py.detach(|| {
            let mut columns = Columns::new(slices.len(), self.integers, self.numbers, self.texts);
            let mut guard = self.state();
            let State { layout, keys } = &mut *guard;
            for (row, value) in slices.iter().enumerate() {
                if let Some(value) = value {
                    layout.read(value, row, &mut columns, keys);
                }
            }
            columns
        });
        let array = |bytes: &Vec<u8>| PyByteArray::new(py, bytes);
        let arrays = |columns: &[Vec<u8>]| columns.iter().map(array).collect();
        Ok((
            array(&columns.keys),
            arrays(&columns.integers),
            arrays(&columns.numbers),
            arrays(&columns.texts),
            arrays(&columns.spans),
            array(&columns.marks),
        ))
    }

    /// How many keys are remembered.
    fn __len__(&self) -> usize {
        self.state().keys.len()
    }

    /// What the keys take, in bytes.
    fn size(&self) -> usize {
        self.state().keys.bytes()
    }

    /// Forget every key.
    fn clear(&self) {
        self.state().keys.clear();
    }
}

#[pymodule]
mod tidegate_native {
    #[pymodule_export]
    use super::Scanner;

    /// What the Python side has to know how to speak to: it rises with each change of `Scanner`.
    #[pymodule_export]
    const SEAM: u32 = 1;

    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
