//! The way in: a protobuf request becomes an update that may be sent, or all that is wrong with it.

use crate::{
    customer::{CustomerUpdate, Field, Flaw, Violation},
    pb,
};

/// Every text of a request: what nothing but the update itself may repeat.
pub(super) fn texts(request: &pb::UpdateCustomerRequest) -> impl Iterator<Item = &str> {
    let optional = [
        &request.email,
        &request.phone,
        &request.address,
        &request.gender,
        &request.ic_number,
        &request.ic_country,
        &request.ic_expiry_date,
        &request.country_of_residence,
        &request.nationality,
        &request.dob,
    ];
    let set = optional.into_iter().filter_map(|text| text.as_deref());
    std::iter::once(request.customer_id.as_str()).chain(set)
}

impl TryFrom<pb::UpdateCustomerRequest> for CustomerUpdate {
    type Error = Vec<Violation>;

    fn try_from(request: pb::UpdateCustomerRequest) -> Result<Self, Vec<Violation>> {
        let occupation = request.occupation.map(|number| {
            let occupation = pb::Occupation::try_from(number).map_err(|_| Flaw::UnknownNumber)?;
            occupation
                .code()
                .map(str::to_owned)
                .ok_or(Flaw::Unspecified)
        });
        let ic_type = request.ic_type.map(|number| {
            let ic_type = pb::IcType::try_from(number).map_err(|_| Flaw::UnknownNumber)?;
            ic_type.code().map(str::to_owned).ok_or(Flaw::Unspecified)
        });
        let fields = [
            (Field::Email, request.email.map(Ok)),
            (Field::Phone, request.phone.map(Ok)),
            (Field::Occupation, occupation),
            (Field::Address, request.address.map(Ok)),
            (Field::Gender, request.gender.map(Ok)),
            (Field::IcType, ic_type),
            (Field::IcNumber, request.ic_number.map(Ok)),
            (Field::IcCountry, request.ic_country.map(Ok)),
            (Field::IcExpiryDate, request.ic_expiry_date.map(Ok)),
            (
                Field::CountryOfResidence,
                request.country_of_residence.map(Ok),
            ),
            (Field::Nationality, request.nationality.map(Ok)),
            (Field::Dob, request.dob.map(Ok)),
        ];
        let set = fields
            .into_iter()
            .filter_map(|(field, value)| Some((field, value?)));
        CustomerUpdate::parse(request.customer_id, set)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};

    use super::*;

    /// A text that the contract has and [`texts`] has not would be let through.
    #[test]
    fn no_text_of_the_contract_is_forgotten() {
        let files = FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
        let mut messages = files.file.iter().flat_map(|file| &file.message_type);
        let contract = messages.find(|message| message.name() == "UpdateCustomerRequest");
        let fields = contract.unwrap().field.iter();
        let strings = fields
            .filter(|field| field.r#type() == Type::String)
            .count();

        let text = || Some("x".to_owned());
        let request = pb::UpdateCustomerRequest {
            customer_id: "x".to_owned(),
            email: text(),
            phone: text(),
            occupation: None,
            address: text(),
            gender: text(),
            ic_type: None,
            ic_number: text(),
            ic_country: text(),
            ic_expiry_date: text(),
            country_of_residence: text(),
            nationality: text(),
            dob: text(),
        };
        assert_eq!(texts(&request).count(), strings);
    }
}
