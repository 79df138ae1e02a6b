//! The way in: a protobuf request becomes an update that may be sent, or all that is wrong with it.

use crate::{
    customer::{CustomerUpdate, Field, Flaw, Violation},
    pb,
};

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
