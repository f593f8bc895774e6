//! What Python sees of the fold: the module `ledger._fold`.

mod account;
mod amount;
mod digest;
mod event;
mod fact;
mod fold;
mod journal;
mod json;
mod keys;
mod near;
mod order;
mod records;
mod store;
mod words;

use digest::Sum;
use event::{Fields, Name, Usual};
use fold::{Content, Record, Shelf, Stored, StoredEntry, Trouble};
use journal::{Entry, Party};
use order::OrderView;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyAssertionError, PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_long};
use std::ops::Range;
use store::MemoryStore;
use typed_arena::Arena;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

extern "C" {
    /// Of mimalloc; its crate does not export it.
    fn mi_option_set(option: c_int, value: c_long);
}

/// After how many milliseconds mimalloc gives back pages that are free: a place in `mi_option_t`.
const PURGE_DELAY: c_int = 15;

/// Lets memory that is free go back to the system after some milliseconds; -1: never.
///
/// It costs time in the system, there and when the memory is needed again.
#[pyfunction]
fn give_back_memory_after(milliseconds: c_long) {
    // SAFETY: mimalloc reads its options atomically, at any time.
    unsafe { mi_option_set(PURGE_DELAY, milliseconds) }
}

/// For so many keys a store in Python is asked at a time, in their order: RocksDB sorts all that it
/// is asked for, which is slow for many, and finds neighbours sooner.
const ASKED: usize = 1024;

/// The store of a partition: ours, or any that Python has.
enum Store {
    Memory(Py<MemoryStore>),
    Python(Py<PyAny>),
}

impl Shelf for Store {
    type Error = PyErr;

    fn get(&self, key: &[u8]) -> PyResult<Option<Vec<u8>>> {
        let store = match self {
            Store::Memory(store) => return store.get().get(key),
            Store::Python(store) => store,
        };
        Python::attach(|py| {
            let found = store.bind(py).call_method1("get", (PyBytes::new(py, key),))?;
            found.extract()
        })
    }

    fn get_many(&self, keys: &[&[u8]]) -> PyResult<Stored> {
        let store = match self {
            Store::Memory(store) => return store.get().get_many(keys),
            Store::Python(store) => store,
        };
        let mut values = vec![None; keys.len()];
        let sorted = fold::sorted_places(keys.len(), |place| keys[place]);
        Python::attach(|py| {
            for places in sorted.chunks(ASKED) {
                let asked = places.iter().map(|place| PyBytes::new(py, keys[*place]));
                let asked = PyList::new(py, asked)?;
                let found = store.bind(py).call_method1("get_many", (asked,))?;
                for (place, value) in places.iter().zip(found.cast::<PyList>()?.iter()) {
                    if !value.is_none() {
                        values[*place] = Some(value.cast::<PyBytes>()?.as_bytes().to_vec());
                    }
                }
            }
            Ok(values)
        })
    }

    fn scan(&self, prefix: &[u8]) -> PyResult<Vec<StoredEntry>> {
        let store = match self {
            Store::Memory(store) => return store.get().scan(prefix),
            Store::Python(store) => store,
        };
        Python::attach(|py| {
            let entries = store.bind(py).call_method1("scan", (PyBytes::new(py, prefix),))?;
            entries.try_iter()?.map(|entry| entry?.extract()).collect()
        })
    }
}

fn raised(trouble: Trouble<PyErr>) -> PyErr {
    match trouble {
        Trouble::Store(error) => error,
        Trouble::Damaged(key) => damaged(&key),
    }
}

fn damaged(what: &[u8]) -> PyErr {
    let what = String::from_utf8_lossy(what).replace('\0', " ");
    let error = Python::attach(|py| -> PyResult<PyErr> {
        let class = py.import("ledger.errors")?.getattr("DamagedState")?;
        let sentence = format!("A stored entry cannot be read: {what}.");
        Ok(PyErr::from_value(class.call1((sentence,))?))
    });
    error.unwrap_or_else(|error| error)
}

/// The entries of one partition's state that are in memory; see `ledger.projections.partition`.
#[pyclass]
struct Fold {
    fold: fold::Fold,
    store: Store,
    judge: Py<PyAny>,
    unfinished: bool, // whether something failed in the middle, so that this is no state
}

#[pymethods]
impl Fold {
    #[new]
    fn new(
        number: u32,
        partitions: u32,
        total: &[u8],
        cached_entries: usize,
        store: Bound<'_, PyAny>,
        judge: Py<PyAny>,
    ) -> PyResult<Fold> {
        let store = match store.cast_into::<MemoryStore>() {
            Ok(store) => Store::Memory(store.unbind()),
            Err(other) => Store::Python(other.into_inner().unbind()),
        };
        let total = Sum::from_bytes(total)
            .ok_or_else(|| PyValueError::new_err("a sum of entries has 256 bytes"))?;
        Ok(Fold {
            fold: fold::Fold::new(number, partitions, total, cached_entries),
            store,
            judge,
            unfinished: false,
        })
    }

    /// Applies records of a topic, the first at `position` or later: `Records`, or a list of objects.
    ///
    /// Returns the position after them, a verdict each (as bytes), what was refused (place, whether
    /// in conflict, why), the log digest after them, and that of the last one alone.
    fn apply<'py>(
        &mut self,
        py: Python<'py>,
        topic: &str,
        records: &Bound<'py, PyAny>,
        position: u64,
        log_digest: Option<[u8; 32]>,
    ) -> PyResult<Applied<'py>> {
        if let Ok(records) = records.cast::<Records>() {
            let records = records.borrow();
            let read: Vec<_> = records.records.iter().collect();
            return self.apply_all(py, topic, &read, position, log_digest);
        }
        let names =
            [pyo3::intern!(py, "offset"), pyo3::intern!(py, "key"), pyo3::intern!(py, "value")];
        let mut held = Vec::new();
        for record in records.cast::<PyList>()?.iter() {
            let [offset, key, value] = names.map(|name| record.getattr(name));
            held.push((offset?.extract()?, key?, value?));
        }
        let mut read = Vec::with_capacity(held.len());
        for (offset, key, value) in &held {
            read.push(Record { offset: *offset, key: bytes_of(key)?, value: bytes_of(value)? });
        }
        self.apply_all(py, topic, &read, position, log_digest)
    }

    /// Returns what is stored of a fill and its bust as of now, or None where neither is known.
    fn execution<'py>(
        &mut self,
        py: Python<'py>,
        account: &str,
        order_id: &str,
        fill_id: &str,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        self.require_finished()?;
        let found = self.fold.execution_of(account, order_id, fill_id, &self.store);
        let found = found.map_err(raised)?;
        Ok(found.map(|value| PyBytes::new(py, &value)))
    }

    /// Returns what changed since the last freeze; it is to be settled before the next.
    ///
    /// What is not `whole` leaves out accounts, as far as there is room for them in memory.
    fn freeze(&mut self, py: Python<'_>, whole: bool) -> PyResult<Frozen> {
        self.require_finished()?;
        let fold = &mut self.fold;
        Ok(Frozen { frozen: py.detach(|| fold.freeze(whole)) })
    }

    /// Takes in what a freeze came to, which is in the store, and forgets what need not be kept.
    fn settle(&mut self, py: Python<'_>, frozen: &Bound<'_, Frozen>) {
        let (fold, frozen) = (&mut self.fold, &frozen.get().frozen);
        py.detach(|| fold.settle(frozen));
    }

    /// The sum over all entries as of the last freeze that was settled, 256 bytes, little-endian.
    #[getter]
    fn total<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.fold.total().to_bytes())
    }
}

type Refusals = Vec<(usize, bool, String)>;
type Applied<'py> =
    (u64, Bound<'py, PyBytes>, Refusals, Option<Bound<'py, PyBytes>>, Option<Bound<'py, PyBytes>>);

impl Fold {
    fn require_finished(&self) -> PyResult<()> {
        if self.unfinished {
            return Err(PyAssertionError::new_err("the state was left unfinished by a failure"));
        }
        Ok(())
    }

    fn apply_all<'py>(
        &mut self,
        py: Python<'py>,
        topic: &str,
        records: &[Record],
        mut position: u64,
        log_digest: Option<[u8; 32]>,
    ) -> PyResult<Applied<'py>> {
        self.require_finished()?;
        for record in records {
            if record.offset > i64::MAX as u64 {
                return Err(PyValueError::new_err("no offset is that large"));
            }
            if record.offset < position {
                return Err(PyAssertionError::new_err(format!(
                    "{topic}: offset {} was applied before (next: {position})",
                    record.offset
                )));
            }
            position = record.offset + 1;
        }
        let fold = &self.fold;
        let mut contents: Vec<_> = py.detach(|| {
            let mut usual = Usual::default();
            records.iter().map(|record| fold.content(topic, record, &mut usual)).collect()
        });
        let arena = Arena::new();
        for (content, record) in contents.iter_mut().zip(records) {
            if matches!(content, Content::Unsure) {
                *content = match self.judged(py, topic, record.value, &arena)? {
                    Content::Event(event) => self.fold.checked(record.key, event),
                    other => other,
                };
            }
        }
        let (fold, store) = (&mut self.fold, &self.store);
        self.unfinished = true;
        let outcome =
            py.detach(|| fold.apply(records, &contents, log_digest, store)).map_err(raised)?;
        self.unfinished = false;
        let verdicts: Vec<u8> = outcome.verdicts.iter().map(|verdict| *verdict as u8).collect();
        let refusals =
            outcome.refusals.into_iter().map(|r| (r.place, r.conflict, r.detail)).collect();
        let digest = outcome.log_digest.map(|digest| PyBytes::new(py, &digest));
        let last = records.last().map(|last| {
            PyBytes::new(py, &digest::chain(&[0; 32], last.offset, last.key, last.value))
        });
        Ok((position, PyBytes::new(py, &verdicts), refusals, digest, last))
    }

    /// Returns what the codec says of a record: the event's fields, or why there is none.
    fn judged<'a>(
        &self,
        py: Python<'_>,
        topic: &str,
        value: Option<&[u8]>,
        arena: &'a Arena<String>,
    ) -> PyResult<Content<'a>> {
        let value = value.map(|value| PyBytes::new(py, value));
        let found = self.judge.bind(py).call1((topic, value))?;
        if let Ok(problem) = found.cast::<PyString>() {
            return Ok(Content::Invalid(problem.to_string()));
        }
        let mut fields = Fields::default();
        for (name, value) in found.cast::<PyDict>()?.iter() {
            let name = Name::of(name.cast::<PyString>()?.to_str()?.as_bytes());
            let name = name.ok_or_else(|| PyValueError::new_err("an unknown field"))?;
            match value.cast::<PyString>() {
                Ok(text) => fields.set(name, arena.alloc(text.to_str()?.to_owned())),
                Err(_) => fields.set_number(name, value.extract()?),
            }
        }
        let event = event::build(&fields);
        Ok(Content::Event(event.ok_or_else(|| PyValueError::new_err("an unknown type"))?))
    }
}

fn bytes_of<'a>(found: &'a Bound<'_, PyAny>) -> PyResult<Option<&'a [u8]>> {
    if found.is_none() {
        Ok(None)
    } else {
        Ok(Some(found.cast::<PyBytes>()?.as_bytes()))
    }
}

type Postings = Vec<(String, String, String, String)>;

fn postings(account: &str, entry: &Entry) -> Postings {
    let name = |party: Party| party.name(account).to_owned();
    let pairs = entry.iter();
    pairs.map(|p| (name(p.debit), name(p.credit), p.asset.to_owned(), p.amount.plain())).collect()
}

/// Returns the entry of a stored fill: account debited, account credited, asset, amount.
#[pyfunction]
fn fill_entry(account: &str, fill: &[u8]) -> PyResult<Postings> {
    journal::with_stored(fill, |trade| postings(account, &trade.entry())).map_err(|_| damaged(fill))
}

/// Returns the entry of a transfer: account debited, account credited, asset, amount.
#[pyfunction]
#[pyo3(signature = (account, kind, asset, amount, fee))]
fn transfer_entry(
    account: &str,
    kind: &str,
    asset: &str,
    amount: &str,
    fee: Option<&str>,
) -> PyResult<Postings> {
    require_amounts(&[Some(amount), fee])?;
    let event = event::Transfer { kind, transfer_id: "", asset, amount, fee, reason: None };
    Ok(postings(account, &journal::transfer_entry(&event)))
}

fn require_amounts(texts: &[Option<&str>]) -> PyResult<()> {
    for text in texts.iter().flatten() {
        amount::Amount::parse(text).ok_or_else(|| damaged(text.as_bytes()))?;
    }
    Ok(())
}

/// Returns what is published of an account; `watermark` is JSON, `stored` its entry, if any.
#[pyfunction]
#[pyo3(signature = (account, watermark, stored))]
fn row<'py>(
    py: Python<'py>,
    account: &str,
    watermark: &[u8],
    stored: Option<&[u8]>,
) -> PyResult<Bound<'py, PyBytes>> {
    let mut out = Vec::new();
    account::write_row(account, watermark, stored, &mut out)
        .map_err(|_| damaged(account.as_bytes()))?;
    Ok(PyBytes::new(py, &out))
}

/// Returns what a fill moves in quote, as canonical text.
#[pyfunction]
#[pyo3(signature = (price, quantity, quote_quantity))]
fn notional(price: &str, quantity: &str, quote_quantity: Option<&str>) -> PyResult<String> {
    require_amounts(&[Some(price), Some(quantity), quote_quantity])?;
    Ok(journal::notional(price, quantity, quote_quantity).plain())
}

type Terms = (bool, bool, Vec<Option<String>>, Option<String>, String);

/// Returns of a stored order whether it is open, whether complete, its quantity, limit price and
/// reserve, what remains, and what it holds.
#[pyfunction]
fn order_terms(stored: &[u8]) -> PyResult<Terms> {
    let view = OrderView::of(stored).map_err(|_| damaged(stored))?;
    let terms = view.terms.iter().map(|term| term.as_ref().map(amount::Amount::plain)).collect();
    let remaining = view.remaining.map(|amount| amount.plain());
    Ok((view.is_open, view.is_complete, terms, remaining, view.hold.plain()))
}

/// Returns the log digest (32 bytes) after one more record.
#[pyfunction]
#[pyo3(signature = (previous, offset, key, value))]
fn chain<'py>(
    py: Python<'py>,
    previous: [u8; 32],
    offset: u64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &digest::chain(&previous, offset, key, value))
}

/// What changed between two freezes. It may be used while the fold goes on.
#[pyclass(frozen)]
struct Frozen {
    frozen: fold::Frozen,
}

#[pymethods]
impl Frozen {
    /// Returns the sum over all entries after these changes, 256 bytes, little-endian.
    fn total<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| self.frozen.total()).to_bytes())
    }

    /// Writes the entries to a store in memory, and one more.
    fn write_into(&self, py: Python<'_>, store: &Bound<'_, MemoryStore>, key: &[u8], value: &[u8]) {
        let store = store.get();
        py.detach(|| {
            let mut entries = store.writing();
            entries.set(key, Some(value));
            self.frozen.entries().for_each(|(key, value)| entries.set(key, value));
        });
    }

    /// Returns an iterator of one entry more, and those to be stored (None: deleted) in order of
    /// their keys.
    fn entries(this: Bound<'_, Frozen>, key: Py<PyBytes>, value: Py<PyBytes>) -> Entries {
        let frozen = &this.get().frozen;
        this.py().detach(|| frozen.sort());
        Entries { of: this.unbind(), first: Some((key, value)), next: 0 }
    }

    /// Returns the accounts that changed, and the stored entry if there is one.
    fn accounts<'py>(&self, py: Python<'py>) -> Vec<(&str, Option<Bound<'py, PyBytes>>)> {
        let accounts = self.frozen.accounts(0);
        accounts.map(|(name, value)| (name, value.map(|value| PyBytes::new(py, value)))).collect()
    }

    /// Returns an iterator of what is published of the accounts that changed: lists of `key` and
    /// `value` each, as a producer takes them; `watermark` is JSON.
    fn rows(this: Py<Frozen>, watermark: Vec<u8>) -> Rows {
        Rows { of: this, watermark, done: 0 }
    }
}

/// So many rows are made at a time: their objects are used while they are new, and used again.
const ROWS: usize = 500;

#[pyclass]
struct Rows {
    of: Py<Frozen>,
    watermark: Vec<u8>,
    done: usize,
}

#[pymethods]
impl Rows {
    fn __iter__(this: Py<Rows>) -> Py<Rows> {
        this
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Vec<Bound<'py, PyDict>>>> {
        let accounts = self.of.get().frozen.accounts(self.done).take(ROWS);
        let mut out = Vec::with_capacity(ROWS * 512);
        let encoded: PyResult<Vec<_>> = py.detach(|| {
            accounts
                .map(|(name, stored)| {
                    account::write_row(name, &self.watermark, stored, &mut out)
                        .map_err(|_| damaged(name.as_bytes()))?;
                    Ok((name, out.len()))
                })
                .collect()
        });
        let (key, value) = (pyo3::intern!(py, "key"), pyo3::intern!(py, "value"));
        let mut rows = Vec::with_capacity(ROWS);
        let mut begin = 0;
        for (name, end) in encoded? {
            let row = PyDict::new(py);
            row.set_item(key, PyBytes::new(py, name.as_bytes()))?;
            row.set_item(value, PyBytes::new(py, &out[begin..end]))?;
            rows.push(row);
            begin = end;
        }
        self.done += rows.len();
        Ok((!rows.is_empty()).then_some(rows))
    }
}

#[pyclass]
struct Entries {
    of: Py<Frozen>,
    first: Option<(Py<PyBytes>, Py<PyBytes>)>,
    next: usize,
}

type PyEntry<'py> = (Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);

#[pymethods]
impl Entries {
    fn __iter__(this: Py<Entries>) -> Py<Entries> {
        this
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> Option<PyEntry<'py>> {
        if let Some((key, value)) = self.first.take() {
            return Some((key.into_bound(py), Some(value.into_bound(py))));
        }
        let (key, value) = self.of.get().frozen.entry(self.next)?;
        self.next += 1;
        Some((PyBytes::new(py, key), value.map(|value| PyBytes::new(py, value))))
    }
}

/// Calls `put` with each key and value, `delete` with each key that has none.
#[pyfunction]
fn put_all<'py>(
    entries: &Bound<'py, PyAny>,
    put: &Bound<'py, PyAny>,
    delete: &Bound<'py, PyAny>,
) -> PyResult<()> {
    let store = |(key, value): PyEntry<'py>| match value {
        Some(value) => put.call1((key, value)).map(drop),
        None => delete.call1((key,)).map(drop),
    };
    if let Ok(entries) = entries.cast::<Entries>() {
        let mut entries = entries.borrow_mut();
        while let Some(entry) = entries.__next__(put.py()) {
            store(entry)?;
        }
        return Ok(());
    }
    for entry in entries.try_iter()? {
        store(entry?.extract()?)?;
    }
    Ok(())
}

/// Bytes of Python's that nobody changes.
struct PythonBytes(PyBuffer<u8>);

impl records::Buffer for PythonBytes {
    fn bytes(&self) -> &[u8] {
        let start = self.0.buf_ptr().cast::<u8>();
        // SAFETY: `Records::add` takes only buffers that are contiguous and cannot be written to; they
        // stay where they are while the buffer is held.
        unsafe { std::slice::from_raw_parts(start, self.0.item_count()) }
    }
}

impl PythonBytes {
    fn of(buffer: PyBuffer<u8>) -> PyResult<PythonBytes> {
        if buffer.readonly() && buffer.is_c_contiguous() && buffer.item_count() > 0 {
            Ok(PythonBytes(buffer))
        } else {
            Err(PyValueError::new_err("only contiguous bytes that cannot change"))
        }
    }
}

/// Records of one partition, from one offset to before another, as they lie in Kafka's batches.
#[pyclass]
struct Records {
    records: records::Records<PythonBytes>,
    wanted: Range<u64>,
}

#[pymethods]
impl Records {
    #[new]
    #[pyo3(signature = (start, end))]
    fn new(start: u64, end: Option<u64>) -> Records {
        let wanted = start..end.unwrap_or(u64::MAX);
        Records { records: records::Records::new(), wanted }
    }

    /// Adds the records of a batch; `payload` is what follows its head, where that is compressed.
    #[pyo3(signature = (batch, payload))]
    fn add(&mut self, batch: PyBuffer<u8>, payload: Option<PyBuffer<u8>>) -> PyResult<()> {
        let batch = PythonBytes::of(batch)?;
        let payload = payload.map(PythonBytes::of).transpose()?;
        let added = self.records.add(&self.wanted, batch, payload);
        added.map_err(|_| PyValueError::new_err("its records are malformed"))
    }

    fn __len__(&self) -> usize {
        self.records.len()
    }

    /// Returns the offset of a record.
    fn offset(&self, place: usize) -> PyResult<u64> {
        let record = self.records.get(place);
        record.map(|record| record.offset).ok_or_else(|| PyIndexError::new_err(place))
    }
}

/// What all accounts are owed, asset by asset: credits less debits, of stored totals that are added
/// one by one.
#[pyclass]
struct BalanceSums {
    sums: BTreeMap<String, amount::Amount>,
}

#[pymethods]
impl BalanceSums {
    #[new]
    fn new() -> BalanceSums {
        BalanceSums { sums: BTreeMap::new() }
    }

    fn add(&mut self, entry: &[u8]) -> PyResult<()> {
        let added = account::each_total(entry, |asset, [debits, credits, _]| {
            let balance = credits.subtract(&debits);
            match self.sums.get_mut(asset) {
                Some(sum) => sum.increase(&balance),
                None => drop(self.sums.insert(asset.to_owned(), balance)),
            }
            Ok(())
        });
        added.map_err(|_| damaged(entry))
    }

    /// Returns assets in order and their sums.
    fn sums(&self) -> Vec<(&str, String)> {
        self.sums.iter().map(|(asset, sum)| (&**asset, sum.plain())).collect()
    }
}

/// The sum over stored entries, added one by one.
#[pyclass]
struct EntrySum {
    sum: Sum,
}

#[pymethods]
impl EntrySum {
    #[new]
    fn new() -> EntrySum {
        EntrySum { sum: Sum::ZERO }
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.sum.add(&Sum::of_entry(key, value));
    }

    /// The sum as 256 bytes, little-endian.
    #[getter]
    fn total<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.sum.to_bytes())
    }
}

/// Returns the partition (from 0) that a record's key belongs to.
#[pyfunction]
fn partition_of(key: &[u8], partitions: u32) -> u32 {
    fold::partition_of(key, partitions)
}

/// Returns what is wrong with a whole batch of records, if anything is.
#[pyfunction]
fn batch_problem(batch: PyBuffer<u8>) -> PyResult<Option<&'static str>> {
    let batch = PythonBytes::of(batch)?;
    Ok(records::problem(records::Buffer::bytes(&batch)))
}

/// Returns whether a record's value is an event of a topic for certain, without the codec.
#[pyfunction]
fn is_sure(topic: &str, value: &[u8]) -> bool {
    event::parse(topic, value, &mut Usual::default()).is_some()
}

#[pymodule]
fn _fold(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Fold>()?;
    module.add_class::<Frozen>()?;
    module.add_class::<EntrySum>()?;
    module.add_class::<BalanceSums>()?;
    module.add_class::<Records>()?;
    module.add_class::<MemoryStore>()?;
    module.add("INLINE", order::INLINE)?;
    module.add_function(wrap_pyfunction!(fill_entry, module)?)?;
    module.add_function(wrap_pyfunction!(transfer_entry, module)?)?;
    module.add_function(wrap_pyfunction!(notional, module)?)?;
    module.add_function(wrap_pyfunction!(give_back_memory_after, module)?)?;
    module.add_function(wrap_pyfunction!(put_all, module)?)?;
    module.add_function(wrap_pyfunction!(row, module)?)?;
    module.add_function(wrap_pyfunction!(order_terms, module)?)?;
    module.add_function(wrap_pyfunction!(chain, module)?)?;
    module.add_function(wrap_pyfunction!(partition_of, module)?)?;
    module.add_function(wrap_pyfunction!(batch_problem, module)?)?;
    module.add_function(wrap_pyfunction!(is_sure, module)?)?;
    Ok(())
}
