//! One account: what the ledger owes it, asset by asset.

use crate::amount::{Amount, ZERO};
use crate::digest::Sum;
use crate::json::{write_string, Damaged, Reader};
use crate::near;
use arrayvec::ArrayString;

/// So many rows are looked through sooner than a place among them is searched.
const FEW_ROWS: usize = 8;

/// An asset's name, in place: rows are looked for by it all the time.
type Asset = ArrayString<32>;

/// How much of a name is its head.
const HEAD: usize = 8;

/// The name of an asset to be looked for, and its first bytes (none of which is zero) as a number.
#[derive(Clone, Copy)]
pub struct Sought<'a> {
    head: u64,
    asset: &'a str,
}

impl<'a> Sought<'a> {
    pub fn new(asset: &'a str) -> Sought<'a> {
        let bytes = asset.bytes().take(HEAD).enumerate();
        let head = bytes.fold(0, |head, (place, byte)| head | u64::from(byte) << (8 * place));
        Sought { head, asset }
    }
}

/// The totals of one asset. Debits and credits only grow; the hold follows the open orders.
pub struct Row {
    head: u64, // of the asset's name, to compare it sooner
    asset: Asset,
    pub debits: Amount,
    pub credits: Amount,
    pub hold: Amount,
}

/// `element` is that of the stored entry, if there is one.
#[derive(Default)]
pub struct Account {
    rows: Vec<Row>,
    pub element: Option<Box<Sum>>,
    pub dirty: bool,
}

impl Account {
    /// Returns the account that a store has.
    pub fn stored(key: &[u8], value: &[u8]) -> Result<Account, Damaged> {
        let mut rows = Vec::new();
        each_total(value, |asset, [debits, credits, hold]| {
            let head = Sought::new(asset).head;
            let asset = Asset::from(asset).map_err(|_| Damaged)?;
            rows.push(Row { head, asset, debits, credits, hold });
            Ok(())
        })?;
        Ok(Account { rows, element: Some(Box::new(Sum::of_entry(key, value))), dirty: false })
    }

    /// Lets the processor bring the rows near, while something else is done.
    pub fn approach(&self) {
        near::bring_all(&self.rows[..self.rows.len().min(FEW_ROWS)]);
    }

    /// Returns the totals of an asset, to be changed in place.
    pub fn row(&mut self, sought: Sought) -> &mut Row {
        let Sought { head, asset } = sought;
        let few = self.rows.len() <= FEW_ROWS;
        let is_it = |row: &Row| {
            row.head == head
                && row.asset.len() == asset.len()
                && (asset.len() <= HEAD || *row.asset == *asset)
        };
        let found = if few { self.rows.iter().position(is_it) } else { None };
        let place = found.unwrap_or_else(|| {
            self.rows.binary_search_by(|row| (*row.asset).cmp(asset)).unwrap_or_else(|place| {
                let asset = Asset::from(asset).expect("names of assets are checked");
                let row = Row { head, asset, debits: ZERO, credits: ZERO, hold: ZERO };
                self.rows.reserve_exact(1); // accounts are many, and new assets seldom
                self.rows.insert(place, row);
                place
            })
        });
        &mut self.rows[place]
    }

    /// Writes the stored entry; nothing where every total is zero, because then there is none.
    pub fn write(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        for row in &self.rows {
            let totals = [&row.debits, &row.credits, &row.hold];
            if totals.iter().all(|total| total.is_zero()) {
                continue;
            }
            out.push(if out.len() == begin { b'{' } else { b',' });
            write_string(&row.asset, out);
            out.extend_from_slice(b":[\"");
            for (place, total) in totals.iter().enumerate() {
                if place > 0 {
                    out.extend_from_slice(b"\",\"");
                }
                total.write(out);
            }
            out.extend_from_slice(b"\"]");
        }
        if out.len() > begin {
            out.push(b'}');
        }
    }
}

/// Does something with each asset of a stored entry, and its debits, credits and hold.
pub fn each_total(
    stored: &[u8],
    mut act: impl FnMut(&str, [Amount; 3]) -> Result<(), Damaged>,
) -> Result<(), Damaged> {
    let mut reader = Reader::new(stored);
    reader.expect(b'{')?;
    while !reader.take(b'}') {
        let asset = reader.string()?;
        reader.expect(b':')?;
        let mut amounts = [ZERO; 3];
        for (place, amount) in amounts.iter_mut().enumerate() {
            reader.expect(if place == 0 { b'[' } else { b',' })?;
            *amount = Amount::parse(&reader.string()?).ok_or(Damaged)?;
        }
        reader.expect(b']')?;
        reader.take(b',');
        act(&asset, amounts)?;
    }
    reader.end()
}

/// Writes what is published of an account: its name, a watermark (JSON), its totals by name.
///
/// `stored` is its entry, if there is one.
pub fn write_row(
    account: &str,
    watermark: &[u8],
    stored: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<(), Damaged> {
    out.extend_from_slice(b"{\"account\":");
    write_string(account, out);
    out.extend_from_slice(b",\"watermark\":");
    out.extend_from_slice(watermark);
    out.extend_from_slice(b",\"balances\":{");
    if let Some(stored) = stored {
        let mut reader = Reader::new(stored);
        reader.expect(b'{')?;
        while !reader.take(b'}') {
            write_string(&reader.string()?, out);
            reader.expect(b':')?;
            let names: [(u8, &[u8]); 3] =
                [(b'[', b":{\"debits\":"), (b',', b",\"credits\":"), (b',', b",\"hold\":")];
            for (before, name) in names {
                reader.expect(before)?;
                out.extend_from_slice(name);
                out.extend_from_slice(reader.raw()?);
            }
            reader.expect(b']')?;
            out.push(b'}');
            if reader.take(b',') {
                out.push(b',');
            }
        }
    }
    out.extend_from_slice(b"}}");
    Ok(())
}
