//! The way back: what was read of Sqril's answer becomes a protobuf response. Here codes become enums, so here the
//! codes that the contract does not know are warned about.

use jiff::Timestamp;

use crate::{
    customer::{Field, Remark, UpdatedCustomer},
    pb,
};

/// The response, and what it warns of.
pub(super) fn written(
    mut customer: UpdatedCustomer,
) -> (pb::UpdateCustomerResponse, Vec<(Field, Remark)>) {
    let mut take = |field| {
        customer
            .texts
            .remove(&field)
            .map(|text| text.into_exposed())
            .unwrap_or_default()
    };
    let ic_type_code = take(Field::IcType);
    let ic_type = pb::IcType::from_code(&ic_type_code);
    let occupation_code = take(Field::Occupation);
    let occupation = pb::Occupation::from_code(&occupation_code);

    let profile = pb::Customer {
        customer_id: take(Field::CustomerId),
        name_first: take(Field::NameFirst),
        name_last: take(Field::NameLast),
        gender: take(Field::Gender),
        ic_number: take(Field::IcNumber),
        ic_type: ic_type.unwrap_or_default().into(),
        ic_country: take(Field::IcCountry),
        occupation: occupation.unwrap_or_default().into(),
        country_of_residence: take(Field::CountryOfResidence),
        phone: take(Field::Phone),
        email: take(Field::Email),
        nationality: take(Field::Nationality),
        dob: take(Field::Dob),
        address: take(Field::Address),
        ic_expiry_date: take(Field::IcExpiryDate),
        created_at: customer.created_at.map(timestamp),
        updated_at: customer.updated_at.map(timestamp),
        allowed: customer.allowed,
        ic_type_code,
        occupation_code,
    };

    let mut remarks = customer.remarks;
    if ic_type.is_none() && !profile.ic_type_code.is_empty() {
        remarks.push((Field::IcType, Remark::Unrecognized));
    }
    if occupation.is_none() && !profile.occupation_code.is_empty() {
        remarks.push((Field::Occupation, Remark::Unrecognized));
    }
    remarks.sort_unstable();
    let response = pb::UpdateCustomerResponse {
        customer: Some(profile),
        warnings: remarks.iter().map(warning).collect(),
    };
    (response, remarks)
}

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    // jiff counts the nanoseconds of a time before 1970 backwards, protobuf always forwards.
    let nanos = at.as_nanosecond().rem_euclid(1_000_000_000);
    let seconds = at.as_nanosecond().div_euclid(1_000_000_000);
    prost_types::Timestamp {
        seconds: i64::try_from(seconds).expect("jiff's range fits"),
        nanos: i32::try_from(nanos).expect("below a second"),
    }
}

fn warning((field, remark): &(Field, Remark)) -> pb::Warning {
    pb::Warning {
        code: code(*remark).into(),
        field: field.name().into(),
    }
}

/// The contract's code for a remark.
pub(super) fn code(remark: Remark) -> pb::WarningCode {
    match remark {
        Remark::Missing => pb::WarningCode::FieldMissing,
        Remark::Unreadable => pb::WarningCode::FieldUnreadable,
        Remark::Unrecognized => pb::WarningCode::CodeUnrecognized,
        Remark::Normalized => pb::WarningCode::ValueNormalized,
    }
}
