// What llguidance's library wants of a Python interpreter: names only. Its C interface, which is all that is used here,
// calls none of them; a version that does ends the process here, with the name.

#include <cstdio>
#include <cstdlib>

// The names are the interpreter's.
// NOLINTBEGIN(readability-identifier-naming)

#define STUB_FUNCTION(name)                                                      \
  extern "C" void name() {                                                       \
    std::fputs("llguidance called " #name ", and there is no Python\n", stderr); \
    std::abort();                                                                \
  }
// Larger than any of the interpreter's objects.
#define STUB_OBJECT(name)      \
  extern "C" {                 \
  alignas(16) char name[1024]; \
  }

// Also others may ask.
extern "C" int Py_IsInitialized() { return 0; }

// clang-format off
STUB_FUNCTION(PyByteArray_AsString) STUB_FUNCTION(PyByteArray_Size) STUB_FUNCTION(PyBytes_AsString)
STUB_FUNCTION(PyBytes_FromStringAndSize) STUB_FUNCTION(PyBytes_Size) STUB_FUNCTION(PyCMethod_New)
STUB_FUNCTION(PyDict_New) STUB_FUNCTION(PyDict_Next) STUB_FUNCTION(PyDict_Size) STUB_FUNCTION(PyErr_Fetch)
STUB_FUNCTION(PyErr_GivenExceptionMatches) STUB_FUNCTION(PyErr_NewExceptionWithDoc)
STUB_FUNCTION(PyErr_NormalizeException) STUB_FUNCTION(PyErr_Occurred) STUB_FUNCTION(PyErr_PrintEx)
STUB_FUNCTION(PyErr_Restore) STUB_FUNCTION(PyErr_SetObject) STUB_FUNCTION(PyErr_SetString)
STUB_FUNCTION(PyErr_WriteUnraisable) STUB_FUNCTION(PyEval_RestoreThread) STUB_FUNCTION(PyEval_SaveThread)
STUB_FUNCTION(PyException_SetCause) STUB_FUNCTION(PyException_SetTraceback) STUB_FUNCTION(PyFloat_AsDouble)
STUB_FUNCTION(PyGILState_Ensure) STUB_FUNCTION(PyGILState_Release) STUB_FUNCTION(PyImport_Import)
STUB_FUNCTION(PyIter_Next) STUB_FUNCTION(PyList_Append) STUB_FUNCTION(PyList_GetItem) STUB_FUNCTION(PyList_New)
STUB_FUNCTION(PyList_SetItem) STUB_FUNCTION(PyList_Size) STUB_FUNCTION(PyLong_AsLong)
STUB_FUNCTION(PyLong_AsUnsignedLongLong) STUB_FUNCTION(PyLong_FromLong) STUB_FUNCTION(PyLong_FromSsize_t)
STUB_FUNCTION(PyLong_FromUnsignedLongLong) STUB_FUNCTION(PyModuleDef_Init) STUB_FUNCTION(PyModule_GetNameObject)
STUB_FUNCTION(PyNumber_Index) STUB_FUNCTION(PyObject_Call) STUB_FUNCTION(PyObject_CallObject)
STUB_FUNCTION(PyObject_DelItem) STUB_FUNCTION(PyObject_GC_Track) STUB_FUNCTION(PyObject_GC_UnTrack)
STUB_FUNCTION(PyObject_GenericSetDict) STUB_FUNCTION(PyObject_GetAttr) STUB_FUNCTION(PyObject_GetItem)
STUB_FUNCTION(PyObject_GetIter) STUB_FUNCTION(PyObject_Repr) STUB_FUNCTION(PyObject_SetAttr)
STUB_FUNCTION(PyObject_SetAttrString) STUB_FUNCTION(PyObject_SetItem) STUB_FUNCTION(PyObject_Size)
STUB_FUNCTION(PyObject_Str) STUB_FUNCTION(PySequence_Check) STUB_FUNCTION(PyTraceBack_Print)
STUB_FUNCTION(PyTuple_GetItem) STUB_FUNCTION(PyTuple_New) STUB_FUNCTION(PyTuple_SetItem) STUB_FUNCTION(PyTuple_Size)
STUB_FUNCTION(PyType_FromSpec) STUB_FUNCTION(PyType_GetFlags) STUB_FUNCTION(PyType_GetSlot)
STUB_FUNCTION(PyType_IsSubtype) STUB_FUNCTION(PyUnicode_AsEncodedString) STUB_FUNCTION(PyUnicode_AsUTF8String)
STUB_FUNCTION(PyUnicode_FromStringAndSize) STUB_FUNCTION(PyUnicode_InternInPlace) STUB_FUNCTION(Py_DecRef)
STUB_FUNCTION(Py_GetVersion) STUB_FUNCTION(Py_IncRef) 

STUB_OBJECT(PyBaseObject_Type) STUB_OBJECT(PyBool_Type) STUB_OBJECT(PyByteArray_Type) STUB_OBJECT(PyBytes_Type)
STUB_OBJECT(PyDict_Type) STUB_OBJECT(PyExc_AttributeError) STUB_OBJECT(PyExc_BaseException)
STUB_OBJECT(PyExc_OverflowError) STUB_OBJECT(PyExc_RuntimeError) STUB_OBJECT(PyExc_SystemError)
STUB_OBJECT(PyExc_TypeError) STUB_OBJECT(PyExc_ValueError) STUB_OBJECT(PyFloat_Type) STUB_OBJECT(PyList_Type)
STUB_OBJECT(PyLong_Type) STUB_OBJECT(PyModule_Type) STUB_OBJECT(PyTuple_Type) STUB_OBJECT(PyType_Type)
STUB_OBJECT(PyUnicode_Type) STUB_OBJECT(_Py_FalseStruct) STUB_OBJECT(_Py_NoneStruct) STUB_OBJECT(_Py_TrueStruct)
    // clang-format on

    // NOLINTEND(readability-identifier-naming)
